//! Serving HTTP: connections, their limits in number, time and size.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::access::{Connections, Peer};
use crate::report;

/// For the headers of a request, the first on a connection and each that follows.
const HEADERS: Duration = Duration::from_secs(5);

/// For the rest of a request.
const BODY: Duration = Duration::from_secs(5);

/// Largest body of a request, in bytes.
const BODY_MAX: usize = 64 << 10;

/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;

/// After a connection could not be taken (out of descriptors, say).
const AGAIN: Duration = Duration::from_millis(100);

/// The body of an answer.
pub(super) type Body = BoxBody<Bytes, Infallible>;

/// A request with all that belongs to it.
pub(super) struct Call {
    pub method: Method,
    pub path: String,
    pub body: Bytes,
}

/// Answers requests.
pub(super) trait Answers {
    /// Answers one.
    async fn answer(&self, call: Call) -> Response<Body>;
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, fields: Value) -> Response<Body> {
    text(status, "application/json", report::answer(fields) + "\n")
}

/// An answer that says what is wrong.
pub(super) fn refuse(status: StatusCode, why: &str) -> Response<Body> {
    json(status, json!({ "error": why }))
}

/// An answer of text.
pub(super) fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    streamed(status, kind, Full::new(Bytes::from(text)).boxed())
}

/// An answer that goes on.
pub(super) fn streamed(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Serves the API to those who may use it, for as long as the daemon runs.
pub(super) async fn serve_unix<A: Answers + 'static>(
    listener: UnixListener,
    group: Option<u32>,
    answers: Rc<A>,
) {
    let connections = Connections::default();
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else {
            continue;
        };
        let Ok(peer) = Peer::of(&stream) else {
            continue;
        };
        // One that is too many is closed at once, which its client sees.
        let Some(place) = connections.enter(peer.user) else {
            continue;
        };
        let may_enter = peer.may_enter(group);
        let answers = answers.clone();
        spawn_local(async move {
            serve(stream, may_enter, answers).await;
            drop(place);
        });
    }
}

/// Serves to whoever can connect.
pub(super) async fn serve_tcp<A: Answers + 'static>(listener: TcpListener, answers: Rc<A>) {
    /// What counts as one user: all.
    const EVERYBODY: u32 = 0;
    let connections = Connections::default();
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else {
            continue;
        };
        let Some(place) = connections.enter(EVERYBODY) else {
            continue;
        };
        let answers = answers.clone();
        spawn_local(async move {
            serve(stream, true, answers).await;
            drop(place);
        });
    }
}

async fn accepted<T>(accepted: io::Result<T>) -> Option<T> {
    if let Err(error) = &accepted {
        log::warn!("accept: {error}");
        sleep(AGAIN).await;
    }
    accepted.ok()
}

/// Serves one connection. Whatever goes wrong with it concerns its client alone.
pub(super) async fn serve<S, A>(stream: S, may_enter: bool, answers: Rc<A>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: Answers + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(handle(request, may_enter, &*answers).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        log::debug!("API: {error}");
    }
}

async fn handle<A: Answers>(
    request: Request<Incoming>,
    may_enter: bool,
    answers: &A,
) -> Response<Body> {
    if !may_enter {
        let why = "only root and the members of the socket's group may use it";
        return refuse(StatusCode::FORBIDDEN, why);
    }
    let (head, body) = request.into_parts();
    let body = match timeout(BODY, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let why = format!("a request has {BODY_MAX} bytes at the most");
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, &why);
        }
        Ok(Err(error)) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => {
            let why = format!("the request was not whole within {BODY:?}");
            return refuse(StatusCode::REQUEST_TIMEOUT, &why);
        }
    };
    answers
        .answer(Call {
            method: head.method,
            path: head.uri.path().to_owned(),
            body,
        })
        .await
}
