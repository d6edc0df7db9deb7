//! Asking the daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::exit;

/// For the head of an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at its socket.
    #[error(
        "no gate daemon answers at {path} ({source}): `systemctl start gate`, or `gate daemon`"
    )]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user may not connect.
    #[error("no right to connect to {path}: use it as root, or as a member of the socket's group")]
    NoRight {
        /// The socket.
        path: PathBuf,
    },
    /// It answers something else than HTTP, or not at all.
    #[error("the gate daemon at {path} does not answer ({why}): `journalctl -u gate` may tell why")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It refuses.
    #[error("the gate daemon says: {why}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        why: String,
    },
}

impl ClientError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoDaemon { .. } => exit::STATE,
            Self::NoRight { .. } => exit::RIGHTS,
            Self::NoAnswer { .. } | Self::Refused { .. } => exit::FAILURE,
        }
    }
}

/// A daemon, by its socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

/// Lines that the daemon sends as things happen.
pub struct Lines {
    body: Incoming,
    path: PathBuf,
    rest: Vec<u8>,
}

impl Client {
    /// The daemon whose socket is there.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.json(Method::GET, path, None).await
    }

    /// Has something done.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// Follows the lines of a stream.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.ask(Method::GET, path, None).await?;
        Ok(Lines {
            body: self.good(response).await?.into_body(),
            path: self.path.clone(),
            rest: Vec::new(),
        })
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let response = self.ask(method, path, body).await?;
        let body = self.good(response).await?.into_body().collect().await;
        let body = body.map_err(|error| self.no_answer(&error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.no_answer(&error))
    }

    async fn good(&self, response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| self.no_answer(&error))?.to_bytes();
        let fields: Value = serde_json::from_slice(&body).unwrap_or_default();
        Err(ClientError::Refused {
            status: status.as_u16(),
            why: fields["error"].as_str().unwrap_or("no reason").to_owned(),
        })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        let connected = UnixStream::connect(&self.path).await;
        let stream = connected.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NoRight {
                path: self.path.clone(),
            },
            _ => ClientError::NoDaemon {
                path: self.path.clone(),
                source,
            },
        })?;
        let handshaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshaken.map_err(|error| self.no_answer(&error))?;
        tokio::spawn(connection);
        let body = body.map(|body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "gate")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| self.no_answer(&error))?;
        match timeout(PATIENCE, sender.send_request(request)).await {
            Ok(answered) => answered.map_err(|error| self.no_answer(&error)),
            Err(_) => Err(self.no_answer(&format!("not within {PATIENCE:?}"))),
        }
    }

    fn no_answer(&self, why: &impl ToString) -> ClientError {
        ClientError::NoAnswer {
            path: self.path.clone(),
            why: why.to_string(),
        }
    }
}

impl Lines {
    /// The next line, without its end; none when the daemon has ended. Nothing is lost where this is given
    /// up on the way.
    ///
    /// # Errors
    /// [`ClientError::NoAnswer`] where the connection breaks.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                return Ok(Some(String::from_utf8_lossy(line).into_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => {
                    return Err(ClientError::NoAnswer {
                        path: self.path.clone(),
                        why: error.to_string(),
                    });
                }
            }
        }
    }
}
