//! One check, ready to be made any number of times.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::connect::{Connection, Target, any, unbracketed};
use super::pass::Passes;
use super::tls::{Connectors, Protocol};
use super::{Check, CheckFailure, Spec, Stage, exec, failure, grpc, http};

/// The `Host` of a request over a Unix socket that names none.
const LOCALHOST: &str = "localhost";

/// One check, ready to be made any number of times. Clones share the look-up of the name.
#[derive(Clone)]
pub struct Checker {
    made: Arc<Made>,
    passes: Option<Passes>,
}

struct Made {
    check: Check,
    timeout: Duration,
    way: Way,
}

/// A check's parts, parsed once.
enum Way {
    Tcp(Target),
    Http(Target, Option<Tls>, http::Ask),
    HttpUnix(PathBuf, http::Ask),
    Grpc(Target, Option<Tls>, grpc::Ask),
    Unix(PathBuf),
    Exec(String),
}

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Checker {
    /// Prepares a check. `connectors` are shared by those that verify in the same way.
    ///
    /// # Errors
    /// Where the certificates to verify against can't be read, or the host is none.
    pub fn new(spec: &Spec, connectors: &mut Connectors) -> Result<Self, CheckFailure> {
        Ok(Self::of(
            spec.check.clone(),
            spec.timeout,
            way(spec, connectors)?,
        ))
    }

    /// A check of a TCP connection to this address.
    #[must_use]
    pub fn tcp(address: SocketAddr, timeout: Duration) -> Self {
        let check = Check::Tcp(address.to_string());
        Self::of(check, timeout, Way::Tcp(Target::Address(address)))
    }

    fn of(check: Check, timeout: Duration, way: Way) -> Self {
        let made = Made {
            check,
            timeout,
            way,
        };
        Self {
            made: Arc::new(made),
            passes: None,
        }
    }

    /// What is checked.
    #[must_use]
    pub fn check(&self) -> &Check {
        &self.made.check
    }

    /// Lets the check's connections pass a closed gate.
    pub fn pass(&mut self, passes: &Passes) {
        self.passes = Some(passes.clone());
    }

    /// Makes the check. It takes no longer than its timeout.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn run(&self) -> Result<(), CheckFailure> {
        let limit = self.made.timeout;
        let progress = Progress {
            deadline: Instant::now() + limit,
            stage: Mutex::new(Stage::Connect),
        };
        let result = timeout_at(progress.deadline, self.once(&progress)).await;
        result.unwrap_or_else(|_| {
            Err(CheckFailure::Timeout {
                limit,
                stage: progress.stage(),
            })
        })
    }

    async fn once(&self, progress: &Progress) -> Result<(), CheckFailure> {
        // Each in a box: all at once would make every check's task as large as the largest.
        match &self.made.way {
            Way::Tcp(target) => Ok(self.connect(target, progress).await?.reset()?),
            Way::Http(target, None, ask) => {
                Box::pin(async {
                    let stream = self.connect(target, progress).await?.talk()?;
                    asked_http(stream, ask, progress).await
                })
                .await
            }
            Way::Http(target, Some(tls), ask) => {
                Box::pin(async {
                    let stream = self.connect(target, progress).await?.talk()?;
                    let stream = tls.connect(stream, progress).await?;
                    asked_http(stream, ask, progress).await
                })
                .await
            }
            Way::HttpUnix(path, ask) => {
                Box::pin(async {
                    let stream = unix(path, progress).await?;
                    asked_http(stream, ask, progress).await
                })
                .await
            }
            Way::Grpc(target, None, ask) => {
                Box::pin(async {
                    let stream = self.connect(target, progress).await?.talk()?;
                    asked_grpc(stream, ask, progress).await
                })
                .await
            }
            Way::Grpc(target, Some(tls), ask) => {
                Box::pin(async {
                    let stream = self.connect(target, progress).await?.talk()?;
                    let stream = tls.connect(stream, progress).await?;
                    asked_grpc(stream, ask, progress).await
                })
                .await
            }
            Way::Unix(path) => unix(path, progress).await.map(drop),
            Way::Exec(command) => {
                Box::pin(async {
                    progress.enter(Stage::Answer);
                    exec::run(command).await
                })
                .await
            }
        }
    }

    async fn connect(
        &self,
        target: &Target,
        progress: &Progress,
    ) -> Result<Connection, CheckFailure> {
        progress.enter(Stage::LookUp);
        let addresses = target.addresses().await?;
        progress.enter(Stage::Connect);
        any(&addresses, self.passes.as_ref(), progress.deadline).await
    }
}

async fn unix(path: &Path, progress: &Progress) -> Result<UnixStream, CheckFailure> {
    progress.enter(Stage::Connect);
    UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            // connect(2): only for a Unix socket that doesn't wait.
            io::ErrorKind::WouldBlock => {
                CheckFailure::Connect(io::Error::other("the socket's backlog is full"))
            }
            _ => CheckFailure::Connect(error),
        })
}

async fn asked_http<S>(stream: S, ask: &http::Ask, progress: &Progress) -> Result<(), CheckFailure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    progress.enter(Stage::Answer);
    http::check(stream, ask, |stage| progress.enter(stage)).await
}

async fn asked_grpc<S>(stream: S, ask: &grpc::Ask, progress: &Progress) -> Result<(), CheckFailure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    progress.enter(Stage::Answer);
    grpc::check(stream, ask).await
}

impl Tls {
    async fn connect(
        &self,
        stream: TcpStream,
        progress: &Progress,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, CheckFailure> {
        progress.enter(Stage::Tls);
        self.connector
            .connect(self.name.clone(), stream)
            .await
            .map_err(CheckFailure::Tls)
    }
}

/// How far a check has come, and when it must be done.
struct Progress {
    deadline: Instant,
    stage: Mutex<Stage>,
}

impl Progress {
    fn enter(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn way(spec: &Spec, connectors: &mut Connectors) -> Result<Way, CheckFailure> {
    Ok(match &spec.check {
        Check::Tcp(authority) => {
            let uri = uri("tcp", authority, "/")?;
            Way::Tcp(target(&uri, 0))
        }
        Check::Http(uri) => {
            let https = uri.scheme_str() == Some("https");
            let asked = Asked::of(spec, uri.authority().map_or("", |it| it.as_str()))?;
            let tls = https.then(|| asked.tls(spec, connectors, Protocol::Http1));
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let ask = asked.http(spec, path)?;
            Way::Http(
                target(uri, if https { 443 } else { 80 }),
                tls.transpose()?,
                ask,
            )
        }
        Check::HttpUnix { socket, path } => {
            let ask = Asked::of(spec, LOCALHOST)?.http(spec, &path.to_string())?;
            Way::HttpUnix(socket.clone(), ask)
        }
        Check::Grpc {
            tls,
            authority,
            service,
        } => {
            let asked = Asked::of(spec, authority)?;
            let scheme = if *tls { "https" } else { "http" };
            let ask = grpc::Ask {
                uri: uri(scheme, &asked.authority, grpc::PATH)?,
                body: grpc::request(service),
            };
            let tls = tls.then(|| asked.tls(spec, connectors, Protocol::Http2));
            Way::Grpc(
                target(&uri("http", authority, "/")?, 0),
                tls.transpose()?,
                ask,
            )
        }
        Check::Unix(path) => Way::Unix(path.clone()),
        Check::Exec(command) => Way::Exec(command.clone()),
    })
}

/// Whom a request is for.
struct Asked {
    authority: String,
    host: String,
}

impl Asked {
    /// The one that the specification names, or this one.
    fn of(spec: &Spec, authority: &str) -> Result<Self, CheckFailure> {
        let authority = spec.host.as_deref().unwrap_or(authority);
        let uri = uri("http", authority, "/")?;
        Ok(Self {
            authority: authority.to_owned(),
            host: unbracketed(uri.host().unwrap_or_default()).to_owned(),
        })
    }

    fn http(&self, spec: &Spec, path: &str) -> Result<http::Ask, CheckFailure> {
        let refused = || no_host(&self.authority);
        let path = path.parse().map_err(|_| refused())?;
        let host = HeaderValue::from_str(&self.authority).map_err(|_| refused())?;
        Ok(http::Ask::new(
            &path,
            &host,
            spec.statuses.clone(),
            spec.body.clone(),
        ))
    }

    fn tls(
        &self,
        spec: &Spec,
        connectors: &mut Connectors,
        protocol: Protocol,
    ) -> Result<Tls, CheckFailure> {
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| CheckFailure::TlsSetup(format!("{}: {error}", self.host)))?;
        let connector = connectors.get(&spec.verify, protocol)?;
        Ok(Tls { connector, name })
    }
}

/// A URL of these parts, where `authority` is a host, and perhaps a port, and nothing else.
fn uri(scheme: &str, authority: &str, path: &str) -> Result<Uri, CheckFailure> {
    let uri = format!("{scheme}://{authority}{path}").parse::<Uri>();
    let is_whole = |uri: &Uri| {
        uri.authority()
            .is_some_and(|it| it.as_str() == authority && !authority.contains('@'))
            && !uri.host().unwrap_or_default().is_empty()
    };
    uri.ok().filter(is_whole).ok_or_else(|| no_host(authority))
}

fn no_host(authority: &str) -> CheckFailure {
    CheckFailure::Host(failure::shown(authority.as_bytes()))
}

fn target(uri: &Uri, default_port: u16) -> Target {
    let port = uri.port_u16().unwrap_or(default_port);
    Target::new(uri.host().unwrap_or_default(), port)
}
