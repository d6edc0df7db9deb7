//! What the API answers.

use std::sync::Arc;

use hyper::{Method, Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::hub::Hub;
use super::server::{Answers, Body, Call, json as answer, refuse, streamed, text};
use super::{Commands, Misuse};
use crate::error::exit;
use crate::metrics::CONTENT_TYPE;

/// Media type of a stream of JSON lines.
const LINES: &str = "application/x-ndjson";

/// Commands that may be under way at a time. Each has a thread, and may wait for a drain.
pub(super) const COMMANDS: usize = 32;

/// Where an answer goes; a failure is a line.
pub(super) type Reply<T> = oneshot::Sender<Result<T, String>>;

/// What the API asks the daemon for.
pub(super) enum Ask {
    /// Read and apply the configuration.
    Reload(Reply<Value>),
    /// What applying would change.
    Plan(Reply<Value>),
    /// What the checks say.
    Health(Reply<Value>),
    /// All figures.
    Metrics(Reply<String>),
}

/// The API.
pub(super) struct Api {
    pub hub: Hub,
    pub commands: Arc<dyn Commands>,
    pub asks: mpsc::Sender<Ask>,
    /// One for each command that may be under way.
    pub turns: Arc<Semaphore>,
}

/// Only the metrics.
pub(super) struct MetricsOnly(pub mpsc::Sender<Ask>);

impl Answers for MetricsOnly {
    async fn answer(&self, call: Call) -> Response<Body> {
        match (&call.method, call.path.as_str()) {
            (&Method::GET, "/metrics") => metrics(&self.0).await,
            _ => refuse(StatusCode::NOT_FOUND, "only GET /metrics is served here"),
        }
    }
}

impl Answers for Api {
    async fn answer(&self, call: Call) -> Response<Body> {
        match (&call.method, call.path.as_str()) {
            (&Method::GET, "/v1" | "/v1/") => answer(StatusCode::OK, self.index()),
            (&Method::GET, "/v1/status") => self.command("status", Map::new()).await,
            (&Method::GET, "/v1/health") => self.json(Ask::Health).await,
            (&Method::GET, "/v1/events") => streamed(StatusCode::OK, LINES, self.hub.follow()),
            (&Method::GET, "/v1/plan") => self.json(Ask::Plan).await,
            (&Method::GET, "/metrics") => metrics(&self.asks).await,
            (&Method::POST, "/v1/reload") => self.json(Ask::Reload).await,
            (&Method::POST, path) if path.starts_with("/v1/") => {
                let command = path.trim_start_matches("/v1/").to_owned();
                match arguments(&call.body) {
                    Ok(arguments) => self.command(&command, arguments).await,
                    Err(why) => refuse(StatusCode::BAD_REQUEST, &why),
                }
            }
            (&Method::GET | &Method::HEAD, _) => refuse(
                StatusCode::NOT_FOUND,
                "there is nothing: GET /v1 lists what is",
            ),
            _ => refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "GET or POST: GET /v1 lists what is",
            ),
        }
    }
}

impl Api {
    fn index(&self) -> Value {
        json!({
            "gate": env!("CARGO_PKG_VERSION"),
            "get": ["/v1/status", "/v1/health", "/v1/events", "/v1/plan", "/metrics"],
            "post": self
                .commands
                .names()
                .iter()
                .map(|name| format!("/v1/{name}"))
                .chain(["/v1/reload".to_owned()])
                .collect::<Vec<_>>(),
        })
    }

    async fn json(&self, what: impl FnOnce(Reply<Value>) -> Ask) -> Response<Body> {
        match ask(&self.asks, what).await {
            Ok(fields) => answer(StatusCode::OK, fields),
            Err(refused) => refused,
        }
    }

    /// Runs a command as the command line would, on a thread of its own: it may wait.
    async fn command(&self, command: &str, arguments: Map<String, Value>) -> Response<Body> {
        // It goes on when its client has gone, so connections alone are no limit.
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            let why = format!("{COMMANDS} commands are under way: try again when one is done");
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &why);
        };
        let (commands, name) = (self.commands.clone(), command.to_owned());
        let run = move || {
            let _turn = turn;
            commands.run(&name, &arguments)
        };
        let ran = spawn_blocking(run).await;
        match ran {
            Ok(Ok(mut done)) => {
                if done.code != exit::DONE {
                    done.fields["exit_code"] = done.code.into();
                }
                answer(status_of(done.code), done.fields)
            }
            Ok(Err(Misuse::Command(why))) => refuse(StatusCode::NOT_FOUND, &why),
            Ok(Err(Misuse::Arguments(why))) => refuse(StatusCode::BAD_REQUEST, &why),
            Err(error) => {
                log::error!("{command}: {error}");
                refuse(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "it ended without an answer",
                )
            }
        }
    }
}

async fn metrics(asks: &mpsc::Sender<Ask>) -> Response<Body> {
    match ask(asks, Ask::Metrics).await {
        Ok(rendered) => text(StatusCode::OK, CONTENT_TYPE, rendered),
        Err(refused) => refused,
    }
}

/// Asks the daemon's loop.
async fn ask<T>(
    asks: &mpsc::Sender<Ask>,
    what: impl FnOnce(Reply<T>) -> Ask,
) -> Result<T, Response<Body>> {
    let (reply, answered) = oneshot::channel();
    let ending = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
    if asks.send(what(reply)).await.is_err() {
        return Err(ending());
    }
    match answered.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(why)) => Err(refuse(StatusCode::CONFLICT, &why)),
        Err(_) => Err(ending()),
    }
}

fn arguments(body: &[u8]) -> Result<Map<String, Value>, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(_) => Err("the body is a JSON object, like {\"gate\": \"web\"}".to_owned()),
        Err(error) => Err(format!("the body is no JSON: {error}")),
    }
}

/// The HTTP status that goes with an exit code.
fn status_of(code: u8) -> StatusCode {
    match code {
        exit::DONE => StatusCode::OK,
        exit::USAGE => StatusCode::BAD_REQUEST,
        exit::RIGHTS => StatusCode::FORBIDDEN,
        exit::STATE | exit::TAKEN | exit::LEASE => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_or_nothing() {
        assert_eq!(arguments(b" \n"), Ok(Map::new()));
        assert_eq!(arguments(b"{\"all\":true}").map(|it| it.len()), Ok(1));
        for body in [&b"[]"[..], b"1", b"{", b"\xff"] {
            assert!(arguments(body).is_err());
        }
    }

    #[test]
    fn exit_codes_have_statuses() {
        for (code, status) in [(0, 200), (1, 500), (2, 400), (3, 409), (4, 403), (124, 409)] {
            assert_eq!(status_of(code).as_u16(), status);
        }
    }
}
