//! Health checks: a TCP connection, HTTP or HTTPS with the expected status, or a command.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, ToSocketAddrs, lookup_host};
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::ServerName};

use crate::error::Error;
use crate::tables::Checks;

/// What is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A TCP connection is accepted at `HOST:PORT`.
    Tcp(String),
    /// A GET of this URL (http or https) is answered with an expected status.
    Http(Uri),
    /// This shell command exits with 0.
    Exec(String),
}

/// Why a text is no check.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: write http://HOST/PATH, https://HOST/PATH, tcp://HOST:PORT or exec:COMMAND")]
pub struct CheckSyntax(String);

impl FromStr for Check {
    type Err = CheckSyntax;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: &str| Err(CheckSyntax(why.to_owned()));
        if let Some(command) = text.strip_prefix("exec:") {
            return match command.trim() {
                "" => refuse("the command is missing"),
                command => Ok(Self::Exec(command.to_owned())),
            };
        }
        let Ok(uri) = text.parse::<Uri>() else {
            return refuse("that is no URL");
        };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return refuse("the scheme or the host is missing");
        };
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return refuse("the host is missing, or has a user name");
        }
        match scheme {
            "http" | "https" => Ok(Self::Http(uri)),
            "tcp" => match authority.port_u16() {
                Some(1..) => Ok(Self::Tcp(authority.to_string())),
                _ => refuse("the port is missing"),
            },
            other => refuse(&format!("{other} is not a scheme that is checked")),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => write!(f, "tcp://{target}"),
            Self::Http(uri) => uri.fmt(f),
            Self::Exec(command) => write!(f, "exec:{command}"),
        }
    }
}

/// HTTP statuses, from and to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(RangeInclusive<u16>);

impl Default for Statuses {
    fn default() -> Self {
        Self(200..=299)
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|status| (100..=599).contains(status))
        };
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => Ok(Self(from..=to)),
            _ => Err("write a status like 200, or a range like 200-399".to_owned()),
        }
    }
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckFailure {
    /// No connection.
    #[error("{}", connect_text(.0))]
    Connect(#[from] io::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Another status.
    #[error("status {0}")]
    Status(u16),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The certificate store can't be read, or the name is none.
    #[error("TLS set-up: {0}")]
    TlsSetup(String),
    /// HTTP went wrong.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The command failed.
    #[error("{0}")]
    Exec(ExitStatus),
}

fn connect_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

/// How checks are made.
#[derive(Clone)]
pub struct Checker {
    statuses: Statuses,
    timeout: Duration,
    tls: Option<TlsConnector>,
    passes: Option<Arc<Mutex<Checks>>>,
}

impl Checker {
    /// A checker for these checks. `timeout` is for one whole check. With `insecure` any
    /// certificate will do.
    ///
    /// # Errors
    /// Where a check is HTTPS and the system's certificates can't be loaded.
    pub fn new(
        checks: &[Check],
        statuses: Statuses,
        timeout: Duration,
        insecure: bool,
    ) -> Result<Self, CheckFailure> {
        let https = checks.iter().any(|check| match check {
            Check::Http(uri) => uri.scheme_str() == Some("https"),
            Check::Tcp(_) | Check::Exec(_) => false,
        });
        let tls = match (https, insecure) {
            (false, _) => None,
            (true, true) => Some(insecure::connector()),
            (true, false) => Some(connector()?),
        };
        Ok(Self {
            statuses,
            timeout,
            tls,
            passes: None,
        })
    }

    /// Makes one check.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn run(&self, check: &Check) -> Result<(), CheckFailure> {
        let one = async {
            match check {
                Check::Tcp(target) => self.connect(target.as_str()).await.map(drop)?,
                Check::Http(uri) => self.http(uri).await?,
                Check::Exec(command) => exec(command).await?,
            }
            Ok(())
        };
        match tokio::time::timeout(self.timeout, one).await {
            Ok(result) => result,
            Err(_) => Err(CheckFailure::Timeout(self.timeout)),
        }
    }

    /// Lets the checks' connections pass a closed gate.
    pub fn pass(&mut self, checks: Checks) {
        self.passes = Some(Arc::new(Mutex::new(checks)));
    }

    async fn connect(&self, target: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in lookup_host(target).await? {
            match self.connect_to(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let Some(passes) = &self.passes else {
            return TcpStream::connect(to).await;
        };
        let to = reached(to);
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.bind(source(to)?)?;
        let pass = Pass {
            passes: Arc::clone(passes),
            from: socket.local_addr()?,
            to,
        };
        pass.enter().map_err(io::Error::other)?;
        socket.connect(to).await
    }

    async fn http(&self, uri: &Uri) -> Result<(), CheckFailure> {
        // A URL's IPv6 address has brackets, which neither look-up nor TLS knows.
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let stream = self.connect((host, port)).await?;
        let status = match &self.tls {
            Some(tls) if https => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|error| CheckFailure::TlsSetup(error.to_string()))?;
                let stream = tls.connect(name, stream).await.map_err(CheckFailure::Tls)?;
                get(stream, uri).await?
            }
            _ => get(stream, uri).await?,
        };
        if self.statuses.0.contains(&status) {
            return Ok(());
        }
        Err(CheckFailure::Status(status))
    }
}

/// The address that a connection really goes to: to the unspecified one it goes to loopback.
fn reached(to: SocketAddr) -> SocketAddr {
    let ip = match to.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, to.port())
}

/// The address from which this host connects to another, with any port.
fn source(to: SocketAddr) -> io::Result<SocketAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket looks up the route and sends nothing.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    let mut source = socket.local_addr()?;
    source.set_port(0);
    Ok(source)
}

/// The entry of one connection, for as long as it is being made.
struct Pass {
    passes: Arc<Mutex<Checks>>,
    from: SocketAddr,
    to: SocketAddr,
}

impl Pass {
    fn enter(&self) -> Result<(), Error> {
        self.checks().enter(self.from, self.to)
    }

    fn checks(&self) -> MutexGuard<'_, Checks> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.checks().leave(self.from, self.to);
    }
}

/// Sends one GET and returns the status of the answer.
async fn get<S>(stream: S, uri: &Uri) -> Result<u16, CheckFailure>
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

async fn exec(command: &str) -> Result<(), CheckFailure> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = Group(child.id());
    let status = child.wait().await?;
    drop(group);
    if status.success() {
        return Ok(());
    }
    Err(CheckFailure::Exec(status))
}

/// A check's process group, which ends with the check: one that was given up, or that left
/// something behind, is killed whole.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // An error means that nothing of it is left.
            let _gone = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// Verifies against the system's certificates.
fn connector() -> Result<TlsConnector, CheckFailure> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let why = loaded.errors.first().map_or_else(
            || "the system has no CA certificates".to_owned(),
            ToString::to_string,
        );
        return Err(CheckFailure::TlsSetup(format!(
            "{why}: install ca-certificates, or use --check-insecure"
        )));
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// TLS without verification, for checks of a backend's self-signed certificate.
mod insecure {
    use std::sync::Arc;

    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::client::danger::{
        HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
    };
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    struct Trusting;

    impl ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            ring::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }

    /// A connector that takes any certificate.
    pub(super) fn connector() -> TlsConnector {
        let config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn reads_checks() {
        for (text, shown) in [
            ("http://127.0.0.1:8080/healthz", None),
            ("https://[fd00::5]/", None),
            ("http://localhost", Some("http://localhost/")),
            ("tcp://127.0.0.1:5432", None),
            ("exec:pg_isready -q", None),
        ] {
            let check: Check = text.parse().expect(text);
            assert_eq!(check.to_string(), shown.unwrap_or(text));
        }
        for text in [
            "",
            "localhost:80",
            "/healthz",
            "ftp://host/",
            "http://",
            "http:///path",
            "http://user@host/",
            "tcp://host",
            "tcp://host:0",
            "exec:",
            "exec:  ",
            "http://a b/",
        ] {
            assert!(text.parse::<Check>().is_err(), "{text}");
        }
    }

    /// A server that answers each connection with these bytes and closes it; `None` never
    /// answers.
    async fn serve(answer: Option<&'static [u8]>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _read = stream.read(&mut request).await;
                match answer {
                    Some(answer) => stream.write_all(answer).await.expect("answer"),
                    None => kept.push(stream),
                }
            }
        });
        address.to_string()
    }

    async fn http(answer: Option<&'static [u8]>) -> Result<(), CheckFailure> {
        let address = serve(answer).await;
        let check: Check = format!("http://{address}/healthz")
            .parse()
            .expect("a check");
        let timeout = Duration::from_millis(200);
        let checker = Checker::new(&[], Statuses::default(), timeout, false)?;
        // Often enough to meet any order in which answer and close can arrive.
        for _ in 0..50 {
            checker.run(&check).await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn an_answer_counts_though_the_server_closes_at_once() {
        let answers: [&[u8]; 2] = [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.0 204 No Content\r\n\r\n",
        ];
        for answer in answers {
            http(Some(answer)).await.expect("healthy");
        }
    }

    #[tokio::test]
    async fn what_is_not_healthy() {
        let teapot = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(
            http(Some(teapot)).await,
            Err(CheckFailure::Status(503))
        ));
        assert!(matches!(http(Some(b"")).await, Err(CheckFailure::Http(_))));
        assert!(matches!(
            http(Some(b"SSH-2.0\r\n")).await,
            Err(CheckFailure::Http(_))
        ));
        assert!(matches!(http(None).await, Err(CheckFailure::Timeout(_))));
    }

    #[tokio::test]
    async fn tcp_and_commands() {
        let timeout = Duration::from_secs(5);
        let checker = Checker::new(&[], Statuses::default(), timeout, false).expect("a checker");
        let address = serve(None).await;
        checker.run(&Check::Tcp(address)).await.expect("connects");
        let refused = checker.run(&Check::Tcp("127.0.0.1:1".to_owned())).await;
        assert_eq!(
            refused.expect_err("refused").to_string(),
            "connection refused"
        );
        let exec = |command: &str| Check::Exec(command.to_owned());
        checker.run(&exec("exit 0")).await.expect("exits with 0");
        assert!(matches!(
            checker.run(&exec("exit 3")).await,
            Err(CheckFailure::Exec(_))
        ));
    }

    #[test]
    fn reads_statuses() {
        assert_eq!("200".parse(), Ok(Statuses(200..=200)));
        assert_eq!("200-399".parse(), Ok(Statuses(200..=399)));
        for text in ["", "99", "600", "300-200", "2xx", "200-"] {
            assert!(text.parse::<Statuses>().is_err(), "{text}");
        }
    }
}
