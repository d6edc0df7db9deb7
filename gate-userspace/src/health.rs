//! Health checks: a TCP connection, HTTP or HTTPS with the expected status, or a command.

mod check;
mod exec;
mod http;
mod insecure;
mod pass;
mod spec;
mod tls;

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use hyper::Uri;
use tokio::net::{TcpStream, ToSocketAddrs, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::tables::Checks;
use pass::Passes;

pub use check::{Check, CheckSyntax, Statuses};
pub use spec::{Spec, Verify};

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
    passes: Option<Passes>,
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
            (true, false) => Some(tls::connector()?),
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
                Check::Exec(command) => exec::run(command).await?,
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
        self.passes = Some(Passes::new(checks));
    }

    async fn connect(&self, target: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in lookup_host(target).await? {
            let connected = match &self.passes {
                Some(passes) => passes.connect(address).await,
                None => TcpStream::connect(address).await,
            };
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
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
                http::get(stream, uri).await?
            }
            _ => http::get(stream, uri).await?,
        };
        if self.statuses.contains(status) {
            return Ok(());
        }
        Err(CheckFailure::Status(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
}
