//! One HTTP/1.1 request over a connection that is there, and the answer as far as it is needed.
//!
//! The head is parsed by httparse, as in hyper, whose client is made for connections that last: with it a
//! check took a quarter more of the processor.

use std::io;

use bytes::{Buf as _, BytesMut};
use httparse::{EMPTY_HEADER, Header, Status};
use hyper::header::HeaderValue;
use hyper::{StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::body::{Body, Decoded};
use super::first::{Speaks, speaks};
use super::{CheckFailure, Stage, Statuses, failure};

/// As much of a body is looked through.
const BODY_MAX: usize = 64 << 10;

/// The most that an answer's head may be.
const HEAD_MAX: usize = 64 << 10;

/// The most header fields that it may have.
const FIELDS_MAX: usize = 100;

/// As much is read at once; most answers are shorter.
const READ: usize = 2 << 10;

/// How gate calls itself.
pub(super) const AGENT: &str = concat!("gate/", env!("CARGO_PKG_VERSION"));

/// What is asked, and what the answer must be.
pub(super) struct Ask {
    request: Vec<u8>,
    statuses: Statuses,
    body: Option<String>,
}

impl Ask {
    /// A GET of this path and query; both arguments are checked for what a head can't have.
    pub fn new(path: &Uri, host: &HeaderValue, statuses: Statuses, body: Option<String>) -> Self {
        let path = path.path_and_query().map_or("/", |path| path.as_str());
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: ").into_bytes();
        request.extend_from_slice(host.as_bytes());
        let rest = format!("\r\nuser-agent: {AGENT}\r\nconnection: close\r\n\r\n");
        request.extend_from_slice(rest.as_bytes());
        Self {
            request,
            statuses,
            body,
        }
    }
}

/// Sends the request and judges the answer. `stage` is told how far it has come.
///
/// # Errors
/// Why it is not healthy.
pub(super) async fn check<S>(
    mut stream: S,
    ask: &Ask,
    stage: impl Fn(Stage),
) -> Result<(), CheckFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A peer may answer, and close, before it has read the request: what can be read tells.
    let _unsent = stream.write_all(&ask.request).await;
    let _unsent = stream.flush().await;
    let mut read = BytesMut::new();
    let head = loop {
        match head(&mut read)? {
            Some(head) => break head,
            None if read.len() >= HEAD_MAX => {
                return refuse("the head is larger than 64 KiB");
            }
            None if more(&mut stream, &mut read).await? => {}
            None => return refuse("the peer closed the connection without an answer"),
        }
    };
    head.judge(&ask.statuses)?;
    let Some(wanted) = &ask.body else {
        return Ok(());
    };
    stage(Stage::Body);
    let mut search = Search::new(wanted);
    let mut body = head.body;
    while !search.is_over() {
        match body.next(&mut read) {
            Decoded::Data(data) => search.add(&data),
            Decoded::More if more(&mut stream, &mut read).await? => {}
            Decoded::More | Decoded::End => return search.result("whole"),
            Decoded::Wrong => return refuse("the body's chunks are no chunks"),
        }
    }
    search.result("first 64 KiB")
}

fn refuse<T>(why: &str) -> Result<T, CheckFailure> {
    Err(CheckFailure::Http(why.to_owned()))
}

/// Reads some more; whether there was more.
async fn more<S: AsyncRead + Unpin>(
    stream: &mut S,
    read: &mut BytesMut,
) -> Result<bool, CheckFailure> {
    read.reserve(READ);
    match stream.read_buf(read).await {
        Ok(count) => Ok(count > 0),
        // TLS that ends without saying so.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(CheckFailure::Http(failure::io_text(&error))),
    }
}

/// What is needed of an answer's head.
#[derive(Debug)]
struct Head {
    status: StatusCode,
    location: Option<String>,
    body: Body,
}

/// The head, once it is whole; interim answers before it are taken away.
fn head(read: &mut BytesMut) -> Result<Option<Head>, CheckFailure> {
    loop {
        let mut fields = [EMPTY_HEADER; FIELDS_MAX];
        let mut answer = httparse::Response::new(&mut fields);
        let length = match answer.parse(read) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(no_answer(speaks(read), error)),
        };
        let Ok(status) = StatusCode::from_u16(answer.code.unwrap_or_default()) else {
            return refuse("the status is no status");
        };
        let field = |name: &str| field(answer.headers, name);
        let head = Head {
            status,
            location: field("location").map(failure::shown),
            body: framing(status, field("transfer-encoding"), field("content-length"))?,
        };
        read.advance(length);
        // After 101 the peer speaks something else (RFC 9110, 15.2.2).
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(head));
        }
    }
}

fn field<'a>(fields: &[Header<'a>], name: &str) -> Option<&'a [u8]> {
    let found = fields
        .iter()
        .rev()
        .find(|it| it.name.eq_ignore_ascii_case(name));
    found.map(|field| field.value)
}

/// How the body's end is known (RFC 9112, 6.3).
fn framing(
    status: StatusCode,
    encoding: Option<&[u8]>,
    length: Option<&[u8]>,
) -> Result<Body, CheckFailure> {
    if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok(Body::of_length(0));
    }
    if let Some(encoding) = encoding {
        let last = encoding
            .rsplit(|byte| *byte == b',')
            .next()
            .unwrap_or_default();
        return Ok(match last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            true => Body::chunked(),
            false => Body::to_the_end(),
        });
    }
    let Some(length) = length else {
        return Ok(Body::to_the_end());
    };
    let text = std::str::from_utf8(length.trim_ascii()).unwrap_or_default();
    match text.parse() {
        Ok(length) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Body::of_length(length)),
        _ => refuse("the content-length is no number"),
    }
}

fn no_answer(speaks: Speaks, error: httparse::Error) -> CheckFailure {
    match failure::foreign(speaks, Speaks::Http1) {
        Some(text) => CheckFailure::Http(text.to_owned()),
        None if error == httparse::Error::TooManyHeaders => {
            CheckFailure::Http(format!("the head has more than {FIELDS_MAX} fields"))
        }
        None => CheckFailure::Http(format!("the answer's head is wrong: {error}")),
    }
}

impl Head {
    fn judge(&self, expected: &Statuses) -> Result<(), CheckFailure> {
        let status = self.status.as_u16();
        if expected.contains(status) {
            return Ok(());
        }
        Err(match &self.location {
            Some(to) if self.status.is_redirection() => CheckFailure::Redirect {
                status,
                to: to.clone(),
            },
            _ => CheckFailure::Status(status),
        })
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

    fn parsed(text: &str) -> Result<Option<Head>, String> {
        let mut read = BytesMut::from(text.as_bytes());
        head(&mut read).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_head_is_whole_or_not_or_none() {
        for (text, status) in [
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r\n", 200),
            ("HTTP/1.0 404\n\n", 404),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\n\r\nHTTP/1.1 204 X\r\n\r\n",
                204,
            ),
            ("HTTP/1.1 101 X\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 101),
        ] {
            let head = parsed(text).expect(text).expect(text);
            assert_eq!(head.status.as_u16(), status, "{text}");
        }
        for text in [
            "",
            "HT",
            "HTTP/1.1 200 OK\r\nA: b\r\n",
            "HTTP/1.1 100 X\r\n\r\n",
        ] {
            assert!(parsed(text).expect(text).is_none(), "{text}");
        }
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "A: b\r\n".repeat(FIELDS_MAX + 1)
        );
        for (text, why) in [
            ("SSH-2.0-OpenSSH_9.2\r\n", "the peer speaks no HTTP"),
            ("HTTP/1.1 2x0 OK\r\n", "the answer's head is wrong"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n",
                "is no number",
            ),
            (&*many, "more than 100 fields"),
        ] {
            let failure = parsed(text).expect_err(text);
            assert!(failure.contains(why), "{failure}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_a_panic(
            start in prop::sample::select(vec!["", "HTTP/1.1 200 OK\r\n"]),
            text in "\\PC{0,30}(\r\n\\PC{0,30}){0,5}",
        ) {
            let _read = parsed(&format!("{start}{text}"));
        }
    }
}
