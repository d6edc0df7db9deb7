//! Users with cookies: some who stay, and new ones all the time, each of whom comes a few times more
//! and leaves. A server tells whether it knows a user's session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::load::{Endless, Outcome, Request, after, start_each};
use crate::topology::{Side, Topology};
use crate::visit::{Answer, Visit};

/// How many stay all along.
const STAYING: usize = 60;
/// Every so many a visit is that of a new user.
const NEW_EVERY: u32 = 8;
/// How often a new user comes back.
const RETURNS: usize = 3;
/// From one of these visits to the next.
const PAUSE: Duration = Duration::from_millis(150);
/// How long a user waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The cookie that the proxy sets, and the one that a server sets.
const COOKIES: [&str; 2] = ["SRV", "session"];

/// The part of nginx's configuration that makes server `number` at `address` keep sessions. Like
/// files on its disk they outlive a restart: it knows its own by the name.
pub fn server(number: usize, address: SocketAddr) -> String {
    format!(
        "    map $cookie_session $state {{ \"\" new; \"~^app{number}-\" known; default lost; }}\n    \
             map $state $issued {{ known \"\"; default \"session=app{number}-$request_id\"; }}\n    \
             server {{\n        \
                 listen {address} backlog=4096;\n        \
                 location / {{\n            \
                     add_header Set-Cookie $issued;\n            \
                     return 200 \"app{number} $state\\n\";\n        \
                 }}\n    \
             }}\n"
    )
}

/// One visit, as its user saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When it was due, how long it took, and how it ended.
    pub request: Request,
    /// Whether it was the first of its user.
    pub first: bool,
    /// The number of the server that answered; 0 if none did.
    pub server: usize,
    /// Whether the user came with a session and it was not known.
    pub lost: bool,
}

/// What a user keeps between visits.
#[derive(Default)]
struct User {
    cookies: [Option<String>; 2],
    server: usize,
}

impl User {
    /// Comes by; `due` is when.
    async fn visit(&mut self, target: SocketAddr, at: Duration, due: Instant) -> Seen {
        let pairs = COOKIES.iter().zip(&self.cookies);
        let cookies: Vec<String> = pairs
            .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)))
            .collect();
        let visit = Visit {
            target,
            host: "web.test".to_owned(),
            path: "/".to_owned(),
            cookies: cookies.join("; "),
        };
        let first = self.server == 0;
        let answer = visit.make(due + PATIENCE).await;
        let (outcome, (server, known)) = match answer.as_ref().map(|a| (a, read(a))) {
            Ok((_, Some(read))) => (Outcome::Ok, read),
            Ok((_, None)) => (Outcome::Other, (0, false)),
            Err(outcome) => (*outcome, (0, false)),
        };
        let lost = outcome == Outcome::Ok && !first && (!known || server != self.server);
        if let (Outcome::Ok, Ok(answer)) = (outcome, &answer) {
            self.server = server;
            for (name, value) in COOKIES.iter().zip(&mut self.cookies) {
                if let Some(new) = answer.cookie(name) {
                    *value = Some(new.to_owned());
                }
            }
        }
        Seen {
            request: Request {
                at,
                latency: due.elapsed(),
                outcome,
            },
            first,
            server,
            lost,
        }
    }
}

/// Which server this is from, and whether it knew the session.
fn read(answer: &Answer) -> Option<(usize, bool)> {
    let (server, state) = answer.line().strip_prefix("app")?.split_once(' ')?;
    Some((server.parse().ok()?, state == "known"))
}

/// Users come to `target`, so many times a second; those that a new one adds by coming back are on
/// top of that.
pub fn visit(topology: &Topology, target: SocketAddr, rate: u32) -> Result<Endless<Vec<Seen>>> {
    let staying: Vec<Arc<Mutex<User>>> = (0..STAYING).map(|_| Arc::default()).collect();
    start_each(topology, Side::Client, rate, move |i, due| {
        let at = after(rate, i);
        let user = Arc::clone(&staying[i as usize % STAYING]);
        async move {
            if i % NEW_EVERY == 0 {
                return come_anew(target, at, due).await;
            }
            // A user does one thing at a time.
            vec![user.lock().await.visit(target, at, due).await]
        }
    })
}

async fn come_anew(target: SocketAddr, at: Duration, due: Instant) -> Vec<Seen> {
    let mut user = User::default();
    let mut seen = vec![user.visit(target, at, due).await];
    for _ in 0..RETURNS {
        sleep(PAUSE).await;
        let now = Instant::now();
        seen.push(user.visit(target, at + (now - due), now).await);
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_nginxs() {
        let text = server(1, "10.0.1.5:80".parse().unwrap());
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert!(text.contains("\"~^app1-\" known;"), "{text}");
    }
}
