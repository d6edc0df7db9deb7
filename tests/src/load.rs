//! Open-loop load: new connections on a fixed schedule.
//!
//! The time of every arrival is fixed beforehand, and latency counts from then, not from when the
//! generator got round to it. So a stall shows in every request that was due during it.

mod alarm;
mod parts;

use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::backend::raise_file_limit;
use crate::topology::{Place, Side, Topology};
use alarm::Alarm;
pub use parts::Parts;

/// From starting the generator to the first arrival: enough to be ready for it.
const LEAD: Duration = Duration::from_millis(50);

/// How one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered with status 200.
    Ok,
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// Nothing within the time allowed.
    TimedOut,
    /// Answered, but not with status 200.
    BadStatus,
    /// Anything else, for example closed without an answer.
    Other,
}

impl Outcome {
    /// Every way to fail.
    pub const ERRORS: [Self; 5] = [
        Self::Refused,
        Self::Reset,
        Self::TimedOut,
        Self::BadStatus,
        Self::Other,
    ];

    pub(crate) fn of_error(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Self::Reset
            }
            ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other,
        }
    }

    pub(crate) fn of_answer(bytes: &[u8]) -> Self {
        match bytes {
            [
                b'H',
                b'T',
                b'T',
                b'P',
                b'/',
                b'1',
                b'.',
                _,
                b' ',
                status @ ..,
            ] => {
                if status.starts_with(b"200") {
                    Self::Ok
                } else {
                    Self::BadStatus
                }
            }
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::TimedOut => "timed out",
            Self::BadStatus => "bad status",
            Self::Other => "other",
        })
    }
}

/// One request, as the client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it was due, from the start of the load.
    pub at: Duration,
    /// From when it was due until its connection was over.
    pub latency: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// New connections at a steady rate, each with one GET.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where they go.
    pub target: SocketAddr,
    /// New connections a second.
    pub rate: u32,
    /// How long new ones are made.
    pub duration: Duration,
    /// How long one may take, from when it was due.
    pub timeout: Duration,
    /// The paths that are asked for, in turn.
    pub paths: &'static [&'static str],
}

impl Load {
    /// A load with a timeout of 10 s.
    pub fn new(target: SocketAddr, rate: u32, duration: Duration) -> Self {
        Self {
            target,
            rate,
            duration,
            timeout: Duration::from_secs(10),
            paths: &["/"],
        }
    }

    /// Starts it in the client namespace, on a thread of its own.
    pub fn start(self, topology: &Topology) -> Result<Running> {
        self.start_at(topology, Side::Client)
    }

    /// As [`start`](Self::start), in any namespace.
    pub fn start_at(self, topology: &Topology, place: impl Into<Place>) -> Result<Running> {
        let begin = Instant::now() + LEAD;
        let thread = topology.start(place, move || self.run(begin))?;
        Ok(Running { begin, thread })
    }

    /// As [`start_at`](Self::start_at), but it goes on until it is told to end.
    pub fn start_endless(self, topology: &Topology, place: impl Into<Place>) -> Result<Endless> {
        start_each(topology, place, self.rate, move |i, due| {
            self.request(i, due)
        })
    }

    /// Runs it from the calling thread, and returns the requests in the order they were due.
    pub fn run(self, begin: Instant) -> Result<Vec<Request>> {
        let count = self.count();
        let request = |i, due| self.request(i, due);
        each(self.rate, begin, |made| made < count, request)
    }

    /// Request `i`.
    fn request(self, i: u32, due: Instant) -> impl Future<Output = Request> + use<> {
        let path = self.paths[i as usize % self.paths.len()];
        async move {
            let outcome = get(self.target, path, due + self.timeout).await;
            Request {
                at: after(self.rate, i),
                latency: due.elapsed(),
                outcome,
            }
        }
    }

    /// How many requests there are.
    fn count(&self) -> u32 {
        (self.duration.as_secs_f64() * f64::from(self.rate)).round() as u32
    }
}

/// When request `i` is due, from the start.
pub(crate) fn after(rate: u32, i: u32) -> Duration {
    Duration::from_secs(1) * i / rate.max(1)
}

/// Does `act` at a steady rate, on a thread of its own, until it is told to end. It is given the
/// number of the request and when that is due.
pub fn start_each<T, F>(
    topology: &Topology,
    place: impl Into<Place>,
    rate: u32,
    act: impl FnMut(u32, Instant) -> F + Send + 'static,
) -> Result<Endless<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let begin = Instant::now() + LEAD;
    let wanted = Arc::new(());
    let mine = Arc::clone(&wanted);
    let thread = topology.start(place, move || {
        each(rate, begin, |_| Arc::strong_count(&mine) > 1, act)
    })?;
    Ok(Endless {
        wanted,
        running: Running { begin, thread },
    })
}

/// Does `act` each time it is due for as long as it is wanted, and returns what each came to, in
/// that order.
fn each<T, F>(
    rate: u32,
    begin: Instant,
    is_wanted: impl Fn(u32) -> bool,
    mut act: impl FnMut(u32, Instant) -> F,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    raise_file_limit()?;
    let mut done = runtime()?.block_on(async {
        let alarm = Alarm::new()?;
        let mut flying = JoinSet::new();
        for i in (0..).take_while(|made| is_wanted(*made)) {
            let due = begin + after(rate, i);
            alarm.wait(due).await?;
            let one = act(i, due);
            flying.spawn(async move { (i, one.await) });
        }
        anyhow::Ok(flying.join_all().await)
    })?;
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

/// A load under way.
pub struct Running<T = Request> {
    begin: Instant,
    thread: JoinHandle<Result<Vec<T>>>,
}

impl<T> Running<T> {
    /// When the first request is due.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// Waits until every request has ended, and returns them in the order they were due.
    pub fn finish(self) -> Result<Vec<T>> {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A load that goes on until it is finished.
pub struct Endless<T = Request> {
    /// The thread goes on for as long as somebody else holds this, too.
    wanted: Arc<()>,
    running: Running<T>,
}

impl<T> Endless<T> {
    /// When the first request is due.
    pub fn begin(&self) -> Instant {
        self.running.begin
    }

    /// Ends it, waits until every request has ended, and returns when the first was due, and all of
    /// them in the order they were due.
    pub fn finish(self) -> Result<(Instant, Vec<T>)> {
        drop(self.wanted);
        Ok((self.running.begin(), self.running.finish()?))
    }
}

/// Makes one GET from the calling thread.
pub fn get_once(target: SocketAddr, path: &str, timeout: Duration) -> Result<Outcome> {
    Ok(runtime()?.block_on(get(target, path, Instant::now() + timeout)))
}

pub(crate) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")
}

/// One connection with one GET, until the server closes it.
async fn get(target: SocketAddr, path: &str, late: Instant) -> Outcome {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    match exchange(target, &request, late).await {
        Err(outcome) => outcome,
        Ok(answer) => Outcome::of_answer(&answer),
    }
}

/// Sends a request over a connection of its own, and returns all that comes until the server closes
/// it.
pub(crate) async fn exchange(
    target: SocketAddr,
    request: &str,
    late: Instant,
) -> Result<Vec<u8>, Outcome> {
    match timeout_at(late.into(), write_and_read(target, request)).await {
        Err(_) => Err(Outcome::TimedOut),
        Ok(Err(error)) => Err(Outcome::of_error(error.kind())),
        Ok(Ok(answer)) => Ok(answer),
    }
}

async fn write_and_read(target: SocketAddr, request: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(256);
    stream.read_to_end(&mut answer).await?;
    if is_cut_off(&answer) {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

/// Whether an answer has fewer bytes than its head says.
fn is_cut_off(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return !answer.is_empty();
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() - head - 4 < length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: u32, ms: u64) -> Load {
        Load::new(
            "10.0.0.5:80".parse().unwrap(),
            rate,
            Duration::from_millis(ms),
        )
    }

    #[test]
    fn the_schedule_is_even_and_does_not_drift() {
        let load = load(300, 5_000);
        assert_eq!(load.count(), 1_500);
        let due = |i| after(load.rate, i);
        assert_eq!(due(0), Duration::ZERO);
        assert_eq!(due(300), Duration::from_secs(1));
        assert_eq!(due(1_500), Duration::from_secs(5));
        let steps: Vec<_> = (0..300).map(|i| due(i + 1) - due(i)).collect();
        let (least, most) = (steps.iter().min().unwrap(), steps.iter().max().unwrap());
        assert!(
            *most - *least <= Duration::from_nanos(1),
            "{least:?} to {most:?}"
        );
    }

    #[test]
    fn a_part_of_a_second_counts() {
        assert_eq!(load(200, 1_500).count(), 300);
        assert_eq!(load(0, 1_500).count(), 0);
    }

    #[test]
    fn answers_are_judged_by_their_status() {
        assert_eq!(Outcome::of_answer(b"HTTP/1.1 200 OK\r\n\r\n"), Outcome::Ok);
        assert_eq!(
            Outcome::of_answer(b"HTTP/1.1 503 Busy\r\n\r\n"),
            Outcome::BadStatus
        );
        assert_eq!(Outcome::of_answer(b""), Outcome::Other);
        assert_eq!(Outcome::of_answer(b"SSH-2.0"), Outcome::Other);
    }

    #[test]
    fn an_answer_is_as_long_as_its_head_says() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert!(!is_cut_off(format!("{head}ok\n").as_bytes()));
        assert!(is_cut_off(format!("{head}ok").as_bytes()));
        assert!(is_cut_off(b"HTTP/1.1 200 OK\r\nContent-"));
        assert!(!is_cut_off(b"HTTP/1.0 503 Busy\r\n\r\nbusy"));
        assert!(!is_cut_off(b""));
    }

    #[test]
    fn errors_are_told_apart() {
        assert_eq!(
            Outcome::of_error(ErrorKind::ConnectionRefused),
            Outcome::Refused
        );
        assert_eq!(
            Outcome::of_error(ErrorKind::ConnectionReset),
            Outcome::Reset
        );
        assert_eq!(Outcome::of_error(ErrorKind::TimedOut), Outcome::TimedOut);
        assert_eq!(Outcome::of_error(ErrorKind::NotFound), Outcome::Other);
    }
}
