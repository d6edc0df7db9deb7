//! One request over a connection that is there.

use std::io;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::CheckFailure;

/// Sends one GET and returns the status of the answer.
pub(super) async fn get<S>(stream: S, uri: &Uri) -> Result<u16, CheckFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("gate/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| CheckFailure::Connect(io::Error::other(error)))?;
    let answer = sender.send_request(request);
    tokio::pin!(connection, answer);
    // A server that closes at once may end the connection in the same moment as it answers.
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return Ok(answer?.status().as_u16()),
            ended = &mut connection, if open => {
                ended?;
                open = false;
            }
        }
    }
}
