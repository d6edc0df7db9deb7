//! A small HTTP/1.1 backend that stops the way a good one does.
//!
//! On SIGTERM it takes what waits in its accept queue, closes its listeners, finishes every
//! connection it has accepted, and exits. `/source` tells a client the address that it comes from.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::text::{duration, parse_duration};

/// How long a stopping backend waits for the first request of a connection it has accepted.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most that a request's head may take, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// A backend's command line.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Addresses to listen on
    #[arg(long, required = true, num_args = 1.., value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// Length of the accept queue, in connections (the kernel caps it at net.core.somaxconn)
    #[arg(long, default_value_t = 4096)]
    pub backlog: u32,
    /// Time that each request takes
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    pub service_time: Duration,
    /// What it answers, beside a line's end
    #[arg(long, default_value = "ok")]
    pub name: String,
    /// Let others listen on the same addresses (SO_REUSEPORT)
    #[arg(long)]
    pub reuse_port: bool,
    /// Take the listening socket from this open file, instead of making one
    #[arg(long, value_name = "FD")]
    pub inherit: Option<RawFd>,
    /// File to write the process id to, once it listens
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
}

impl Options {
    /// A backend on one address, that answers at once.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen: vec![listen],
            backlog: 4096,
            service_time: Duration::ZERO,
            name: "ok".to_owned(),
            reuse_port: false,
            inherit: None,
            pid_file: None,
        }
    }

    /// The command line that means this.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec!["--listen".to_owned()];
        args.extend(self.listen.iter().map(ToString::to_string));
        args.extend(["--backlog".to_owned(), self.backlog.to_string()]);
        args.extend(["--service-time".to_owned(), duration(self.service_time)]);
        args.extend(["--name".to_owned(), self.name.clone()]);
        if self.reuse_port {
            args.push("--reuse-port".to_owned());
        }
        if let Some(fd) = self.inherit {
            args.extend(["--inherit".to_owned(), fd.to_string()]);
        }
        if let Some(path) = &self.pid_file {
            args.extend(["--pid-file".to_owned(), path.display().to_string()]);
        }
        args
    }
}

/// Serves until SIGTERM, and returns when everything accepted is finished.
pub fn serve(options: &Options) -> Result<()> {
    raise_file_limit()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?
        .block_on(run(options))
}

/// Lets this process have as many files open as the machine allows.
pub fn raise_file_limit() -> Result<()> {
    let hard = most_files()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit(RLIMIT_NOFILE)")
}

/// How many files a process may have open on this machine.
pub(crate) fn most_files() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
    Ok(hard)
}

async fn run(options: &Options) -> Result<()> {
    // Before it listens, so that no SIGTERM can find the default action.
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let (stop, stopping) = watch::channel(false);
    let service = Arc::new(Service {
        time: options.service_time,
        name: options.name.clone(),
    });
    let mut acceptors = JoinSet::new();
    for &address in &options.listen {
        let listener = match options.inherit {
            None => listen(address, options).with_context(|| format!("listen on {address}"))?,
            Some(fd) => inherited(fd).with_context(|| format!("take the listener {fd}"))?,
        };
        acceptors.spawn(accept(listener, Arc::clone(&service), stopping.clone()));
    }
    if let Some(path) = &options.pid_file {
        // Renamed, so that whoever finds it finds all of it.
        let whole = path.with_extension("new");
        std::fs::write(&whole, std::process::id().to_string())
            .and_then(|()| std::fs::rename(&whole, path))
            .with_context(|| format!("write {}", path.display()))?;
    }
    terminate.recv().await;
    stop.send_replace(true);
    while let Some(connections) = acceptors.join_next().await {
        connections.context("accept connections")??.join_all().await;
    }
    Ok(())
}

/// How requests are answered.
struct Service {
    time: Duration,
    name: String,
}

fn listen(address: SocketAddr, options: &Options) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Its predecessor's connections may linger in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(options.reuse_port)?;
    socket.bind(address)?;
    socket.listen(options.backlog)
}

/// A listener that the parent opened, and keeps.
fn inherited(fd: RawFd) -> io::Result<TcpListener> {
    // SAFETY: the parent passed this file on for the life of the process, and nobody here closes it.
    let given = unsafe { BorrowedFd::borrow_raw(fd) };
    let listener = std::net::TcpListener::from(given.try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Accepts until told to stop, then empties the accept queue and closes the listener. Returns the
/// connections that are being served.
async fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    mut stopping: watch::Receiver<bool>,
) -> Result<JoinSet<()>> {
    let mut connections = JoinSet::new();
    let serve = |stream, stopping: &watch::Receiver<bool>| {
        let mut stopping = stopping.clone();
        let service = Arc::clone(&service);
        async move {
            // A client may go at any time; that is its own business.
            let _ = converse(stream, &service, &mut stopping).await;
        }
    };
    loop {
        tokio::select! {
            biased;
            () = told(&mut stopping) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, &stopping))),
                // Out of files, or a client that went while it was queued.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            },
        }
        while connections.try_join_next().is_some() {}
    }
    // Closing a listener resets what is still in its queue, so that comes out first.
    let listener = listener.into_std().context("take the listener")?;
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true).context("set O_NONBLOCK")?;
        let stream = TcpStream::from_std(stream).context("take a connection")?;
        connections.spawn(serve(stream, &stopping));
    }
    Ok(connections)
}

/// Answers the requests of one connection, until it is to be closed or the backend stops.
async fn converse(
    mut stream: TcpStream,
    service: &Service,
    stopping: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut first = true;
    loop {
        let head = tokio::select! {
            biased;
            head = read_head(&mut stream, &mut buffer) => head?,
            () = told_to_stop(stopping, first) => None,
        };
        let Some(head) = head else { return Ok(()) };
        first = false;
        if !service.time.is_zero() {
            tokio::time::sleep(service.time).await;
        }
        let (status, last) = answer(&head);
        let last = last || *stopping.borrow();
        let response = match head.starts_with("GET /source ") {
            true => response(status, &stream.peer_addr()?.ip().to_string(), last),
            false => response(status, &service.name, last),
        };
        stream.write_all(response.as_bytes()).await?;
        if last {
            return stream.shutdown().await;
        }
    }
}

/// Resolves when a connection should be closed without another request: at once when it is idle
/// between two, later when its first has yet to come.
async fn told_to_stop(stopping: &mut watch::Receiver<bool>, first: bool) {
    told(stopping).await;
    if first {
        tokio::time::sleep(PATIENCE).await;
    }
}

/// Resolves when the backend is to stop.
async fn told(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender has gone, and that is a stop, too.
    drop(stopping.wait_for(|&stop| stop).await);
}

/// Reads a request's head, and leaves what follows it in the buffer. `None` when the client closed.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if buffer.len() > MAX_HEAD || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// The status for a request, and whether it is the connection's last.
fn answer(head: &str) -> (&'static str, bool) {
    let mut lines = head.lines();
    let words: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let close = lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| {
            name.eq_ignore_ascii_case("connection") && value.trim().eq_ignore_ascii_case("close")
        });
    match words[..] {
        ["GET", "/" | "/healthz" | "/source", "HTTP/1.1"] => ("200 OK", close),
        ["GET", _, "HTTP/1.1"] => ("404 Not Found", close),
        // What isn't a GET of today may have a body, and that is not read.
        _ => ("400 Bad Request", true),
    }
}

fn response(status: &str, name: &str, last: bool) -> String {
    let connection = if last { "close" } else { "keep-alive" };
    let length = name.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{name}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_by_method_and_path() {
        let status = |head: &str| answer(head).0;
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "200 OK");
        assert_eq!(status("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"), "200 OK");
        assert_eq!(status("GET /other HTTP/1.1\r\n\r\n"), "404 Not Found");
        assert_eq!(answer("POST / HTTP/1.1\r\n\r\n"), ("400 Bad Request", true));
        assert_eq!(answer(""), ("400 Bad Request", true));
    }

    #[test]
    fn the_client_may_ask_for_the_last_answer() {
        assert!(!answer("GET / HTTP/1.1\r\nHost: a\r\n\r\n").1);
        assert!(answer("GET / HTTP/1.1\r\nconnection:  Close\r\n\r\n").1);
    }

    #[test]
    fn options_survive_the_command_line() {
        use clap::{Command, FromArgMatches};
        let options = Options {
            listen: vec![
                "10.0.0.5:80".parse().unwrap(),
                "[fd00::5]:80".parse().unwrap(),
            ],
            backlog: 128,
            service_time: Duration::from_millis(5),
            name: "b".to_owned(),
            reuse_port: true,
            inherit: Some(7),
            pid_file: Some("/run/pid".into()),
        };
        let args = ["backend".to_owned()].into_iter().chain(options.to_args());
        let matches = Options::augment_args(Command::new("backend")).get_matches_from(args);
        let again = Options::from_arg_matches(&matches).unwrap();
        assert_eq!(again.to_args(), options.to_args());
        assert_eq!(again.listen, options.listen);
    }
}
