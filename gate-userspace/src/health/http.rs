//! One HTTP/1.1 request over a connection that is there.

use std::io;
use std::pin::{Pin, pin};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::first::{FirstBytes, Remembering, Speaks};
use super::{CheckFailure, Stage, Statuses, failure};

/// As much of a body is looked through.
const BODY_MAX: usize = 64 << 10;

/// The most that an answer's head may be.
const HEAD_MAX: usize = 64 << 10;

/// How gate calls itself.
pub(super) const AGENT: &str = concat!("gate/", env!("CARGO_PKG_VERSION"));

/// What is asked, and what the answer must be.
pub(super) struct Ask {
    /// The path and the query.
    pub path: Uri,
    pub host: HeaderValue,
    pub statuses: Statuses,
    pub body: Option<String>,
}

/// Sends one GET and judges the answer. `stage` is told how far it has come.
///
/// # Errors
/// Why it is not healthy.
pub(super) async fn check<S>(
    stream: S,
    ask: &Ask,
    stage: impl Fn(Stage),
) -> Result<(), CheckFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = FirstBytes::default();
    let failed = |error: hyper::Error| failure::http(&error, first.speaks(), Speaks::Http1);
    let stream = TokioIo::new(Remembering::new(stream, first.clone()));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(stream)
        .await
        .map_err(failed)?;
    let request = Request::get(ask.path.clone())
        .header(HOST, &ask.host)
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| CheckFailure::Connect(io::Error::other(error)))?;
    let connection = pin!(connection);
    let mut connection = Driven::new(connection);
    let answer = connection.until(sender.send_request(request)).await;
    let answer = answer.and_then(|answer| answer).map_err(failed)?;
    status(&answer, &ask.statuses)?;
    let Some(wanted) = &ask.body else {
        return Ok(());
    };
    stage(Stage::Body);
    let mut search = Search::new(wanted);
    let mut body = answer.into_body();
    while !search.is_over() {
        match connection.until(body.frame()).await.map_err(failed)? {
            Some(frame) => {
                if let Ok(data) = frame.map_err(failed)?.into_data() {
                    search.add(&data);
                }
            }
            None => return search.result("whole"),
        }
    }
    search.result("first 64 KiB")
}

fn status(answer: &Response<Incoming>, statuses: &Statuses) -> Result<(), CheckFailure> {
    let status = answer.status();
    if statuses.contains(status.as_u16()) {
        return Ok(());
    }
    Err(match answer.headers().get(LOCATION) {
        Some(to) if status.is_redirection() => CheckFailure::Redirect {
            status: status.as_u16(),
            to: failure::shown(to.as_bytes()),
        },
        _ => CheckFailure::Status(status.as_u16()),
    })
}

/// A connection that moves on while something is waited for that comes over it.
pub(super) struct Driven<'a, C> {
    connection: Pin<&'a mut C>,
    is_open: bool,
}

impl<'a, C: Future<Output = hyper::Result<()>>> Driven<'a, C> {
    pub fn new(connection: Pin<&'a mut C>) -> Self {
        Self {
            connection,
            is_open: true,
        }
    }

    /// What the future comes to, or why the connection failed before.
    pub async fn until<T>(&mut self, future: impl Future<Output = T>) -> hyper::Result<T> {
        let mut future = pin!(future);
        // A server that closes at once may end the connection in the same moment as it answers.
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                ended = &mut self.connection, if self.is_open => {
                    self.is_open = false;
                    ended?;
                }
            }
        }
    }
}

/// A text looked for in a body that comes in parts. Only as much is kept as a match can begin in.
struct Search<'a> {
    wanted: &'a [u8],
    tail: Vec<u8>,
    seen: usize,
    found: bool,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a str) -> Self {
        Self {
            wanted: wanted.as_bytes(),
            tail: Vec::new(),
            seen: 0,
            found: wanted.is_empty(),
        }
    }

    fn add(&mut self, part: &[u8]) {
        let part = &part[..part.len().min(BODY_MAX - self.seen)];
        self.seen += part.len();
        self.tail.extend_from_slice(part);
        let mut windows = self.tail.windows(self.wanted.len().max(1));
        self.found |= windows.any(|window| window == self.wanted);
        let keep = self.wanted.len().saturating_sub(1);
        self.tail.drain(..self.tail.len().saturating_sub(keep));
    }

    fn is_over(&self) -> bool {
        self.found || self.seen >= BODY_MAX
    }

    fn result(&self, part: &'static str) -> Result<(), CheckFailure> {
        match self.found {
            true => Ok(()),
            false => Err(CheckFailure::Body(part)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_text_is_found_however_the_body_is_cut(
            body in "[ab]{0,60}",
            wanted in "[ab]{0,6}",
            cuts in prop::collection::vec(0_usize..9, 0..30),
        ) {
            let mut search = Search::new(&wanted);
            let mut rest = body.as_bytes();
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                search.add(part);
                rest = after;
            }
            search.add(rest);
            prop_assert_eq!(search.found, body.contains(&wanted));
        }
    }

    #[test]
    fn what_comes_after_64_kib_does_not_count() {
        for (before, found) in [(BODY_MAX - 2, true), (BODY_MAX - 1, false)] {
            let mut search = Search::new("ok");
            search.add(&vec![b' '; before]);
            search.add(b"ok");
            assert_eq!((search.found, search.is_over()), (found, true));
        }
    }
}
