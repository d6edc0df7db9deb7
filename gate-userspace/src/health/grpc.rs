//! The gRPC health check: `grpc.health.v1.Health/Check`
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>) over HTTP/2
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, TE, USER_AGENT};
use hyper::rt::Executor;
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::first::{FirstBytes, Remembering};
use super::http::AGENT;
use super::{CheckFailure, failure};

/// The method's path.
pub(super) const PATH: &str = "/grpc.health.v1.Health/Check";

/// The most that an answer may be; one status is two bytes.
const ANSWER_MAX: usize = 4 << 10;

/// Before each message: whether it is compressed, and its length, big-endian.
const PREFIX: usize = 5;

/// What is asked.
pub(super) struct Ask {
    /// The URL of the method.
    pub uri: Uri,
    /// The request's body.
    pub body: Bytes,
}

/// Asks, and judges the answer.
///
/// # Errors
/// Why it is not serving.
pub(super) async fn check<S>(stream: S, ask: &Ask) -> Result<(), CheckFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let first = FirstBytes::default();
    let failed = |error: hyper::Error| failure::http2(&error, first.speaks());
    let stream = TokioIo::new(Remembering::new(stream, first.clone()));
    let tasks = Tasks::default();
    let (mut sender, connection) = http2::Builder::new(tasks.executor())
        .initial_stream_window_size(16 << 10)
        .handshake(stream)
        .await
        .map_err(failed)?;
    let request = Request::post(ask.uri.clone())
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(Full::new(ask.body.clone()))
        .map_err(|error| CheckFailure::Connect(io::Error::other(error)))?;
    let connection = pin!(connection);
    let mut connection = Driven::new(connection);
    let answer = connection.until(sender.send_request(request)).await;
    let answer = answer.and_then(|answer| answer).map_err(failed)?;
    let (head, mut body) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Err(CheckFailure::Status(head.status.as_u16()));
    }
    // An answer that is no more than an error has its status in the head.
    succeeded(&head.headers).unwrap_or(Ok(()))?;
    let mut message = Vec::new();
    while let Some(frame) = connection.until(body.frame()).await.map_err(failed)? {
        match frame.map_err(failed)?.into_data() {
            Ok(data) if message.len() + data.len() > ANSWER_MAX => {
                return refuse("the answer is too long");
            }
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => {
                if let Some(result) = frame.trailers_ref().and_then(succeeded) {
                    return result.and_then(|()| serving(&message));
                }
            }
        }
    }
    refuse("the answer has no grpc-status")
}

fn refuse<T>(why: &str) -> Result<T, CheckFailure> {
    Err(CheckFailure::Grpc(why.to_owned()))
}

/// What `grpc-status` says, where it is there (<https://grpc.io/docs/guides/status-codes/>).
fn succeeded(headers: &HeaderMap) -> Option<Result<(), CheckFailure>> {
    let status = headers.get("grpc-status")?.as_bytes();
    Some(match status {
        b"0" => Ok(()),
        b"5" => refuse("the service is not known there"),
        b"12" => refuse("there is no health service"),
        other => {
            let message = headers
                .get("grpc-message")
                .map_or(&b""[..], |it| it.as_bytes());
            Err(CheckFailure::Grpc(
                format!(
                    "status {} {}",
                    failure::shown(other),
                    failure::shown(message)
                )
                .trim_end()
                .to_owned(),
            ))
        }
    })
}

/// The body of the request: `HealthCheckRequest { string service = 1; }`.
pub(super) fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(FIELD_1 << 3 | LENGTH);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut body = BytesMut::with_capacity(PREFIX + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put_slice(&message);
    body.freeze()
}

/// Judges the body of the answer: `HealthCheckResponse { ServingStatus status = 1; }`.
fn serving(body: &[u8]) -> Result<(), CheckFailure> {
    match status(body) {
        Some(1) => Ok(()),
        Some(0) => refuse("the status is UNKNOWN"),
        Some(2) => refuse("NOT_SERVING"),
        Some(3) => refuse("the service is not known there"),
        Some(other) => refuse(&format!("the status is {other}, which has no name")),
        None => refuse("the answer is no HealthCheckResponse"),
    }
}

const FIELD_1: u8 = 1;
/// Wire types (<https://protobuf.dev/programming-guides/encoding/>).
const VARINT: u8 = 0;
const LENGTH: u8 = 2;

/// The status in one uncompressed message, the last one where there are several; 0 where it is left
/// out, as protobuf does with what is 0.
fn status(body: &[u8]) -> Option<u64> {
    let (prefix, mut message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(*prefix.last_chunk()?);
    if prefix[0] != 0 || usize::try_from(length) != Ok(message.len()) {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, u8::try_from(key & 7).ok()?) {
            (0, _) => return None,
            (1, VARINT) => status = varint(&mut message)?,
            (1, _) => return None,
            (_, VARINT) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, LENGTH) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(to: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        to.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    to.put_u8(value as u8);
}

/// A connection that moves on while something is waited for that comes over it.
struct Driven<'a, C> {
    connection: Pin<&'a mut C>,
    is_open: bool,
}

impl<'a, C: Future<Output = hyper::Result<()>>> Driven<'a, C> {
    fn new(connection: Pin<&'a mut C>) -> Self {
        Self {
            connection,
            is_open: true,
        }
    }

    /// What the future comes to, or why the connection failed before.
    async fn until<T>(&mut self, future: impl Future<Output = T>) -> hyper::Result<T> {
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

/// The tasks of one connection, which end with the check, however that ends.
#[derive(Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn executor(&self) -> Spawner {
        Spawner(Arc::clone(&self.0))
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}

#[derive(Clone)]
struct Spawner(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, future: F) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("short");
        [&[0][..], &length.to_be_bytes(), message].concat()
    }

    #[test]
    fn a_request_is_what_protoc_makes_of_it() {
        assert_eq!(&request("")[..], b"\0\0\0\0\0");
        assert_eq!(&request("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = request(&"x".repeat(300));
        assert_eq!(&long[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
        assert_eq!(long.len(), 5 + 3 + 300);
    }

    #[test]
    fn an_answer_is_read_as_protobuf_says() {
        for (message, expected) in [
            (&b"\x08\x01"[..], Some(1)),
            (b"\x08\x02", Some(2)),
            (b"", Some(0)),
            (b"\x08\x02\x08\x01", Some(1)),
            (b"\x12\x02ab\x08\x01", Some(1)),
            (b"\x11\0\0\0\0\0\0\0\0\x15\0\0\0\0\x18\x05\x08\x01", Some(1)),
            (b"\x08", None),
            (b"\x0a\x01\x01", None),
            (b"\x12\x7f", None),
            (b"\x13\x14", None),
            (b"\0\0", None),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None),
        ] {
            assert_eq!(status(&framed(message)), expected, "{message:x?}");
        }
        for body in [&b"\0\0\0\0\x02\x08"[..], b"\x01\0\0\0\x02\x08\x01", b"\0\0"] {
            assert_eq!(status(body), None, "{body:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _read = status(&body);
            let _framed = status(&framed(&body));
        }

        #[test]
        fn a_status_among_unknown_fields_is_found(
            before in prop::collection::vec((2_u64..99, any::<u64>()), 0..5),
            code in 0_u64..9,
            after in prop::collection::vec((2_u64..99, prop::collection::vec(any::<u8>(), 0..9)), 0..5),
        ) {
            let mut message = BytesMut::new();
            for (field, value) in before {
                put_varint(&mut message, field << 3);
                put_varint(&mut message, value);
            }
            message.put_u8(0x08);
            put_varint(&mut message, code);
            for (field, bytes) in after {
                put_varint(&mut message, field << 3 | 2);
                put_varint(&mut message, bytes.len() as u64);
                message.put_slice(&bytes);
            }
            prop_assert_eq!(status(&framed(&message)), Some(code));
        }
    }
}
