//! Open-loop load: new connections on a fixed schedule.
//!
//! The time of every arrival is fixed beforehand, and latency counts from then, not from when the
//! generator got round to it. So a stall shows in every request that was due during it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::backend::raise_file_limit;
use crate::topology::{Place, Side, Topology};

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

    fn of_error(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Self::Reset
            }
            ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other,
        }
    }

    fn of_answer(bytes: &[u8]) -> Self {
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
        let begin = Instant::now() + LEAD;
        let wanted = Arc::new(());
        let mine = Arc::clone(&wanted);
        let thread = topology.start(place, move || {
            raise_file_limit()?;
            let is_wanted = |_| Arc::strong_count(&mine) > 1;
            runtime()?.block_on(self.generate(begin, is_wanted))
        })?;
        Ok(Endless {
            wanted,
            running: Running { begin, thread },
        })
    }

    /// Runs it from the calling thread, and returns the requests in the order they were due.
    pub fn run(self, begin: Instant) -> Result<Vec<Request>> {
        raise_file_limit()?;
        let count = self.count();
        runtime()?.block_on(self.generate(begin, |made| made < count))
    }

    /// When request `i` is due, from the start.
    fn due(&self, i: u32) -> Duration {
        Duration::from_secs(1) * i / self.rate.max(1)
    }

    /// How many requests there are.
    fn count(&self) -> u32 {
        (self.duration.as_secs_f64() * f64::from(self.rate)).round() as u32
    }

    async fn generate(
        self,
        begin: Instant,
        is_wanted: impl Fn(u32) -> bool,
    ) -> Result<Vec<Request>> {
        let alarm = Alarm::new()?;
        let mut flying = JoinSet::new();
        let paths = self.paths.iter().cycle();
        for (i, &path) in (0..).take_while(|made| is_wanted(*made)).zip(paths) {
            let at = self.due(i);
            alarm.wait(begin + at).await?;
            flying.spawn(async move {
                let outcome = get(self.target, path, begin + at + self.timeout).await;
                Request {
                    at,
                    latency: (begin + at).elapsed(),
                    outcome,
                }
            });
        }
        let mut requests = flying.join_all().await;
        requests.sort_by_key(|request| request.at);
        Ok(requests)
    }
}

/// A load under way.
pub struct Running {
    begin: Instant,
    thread: JoinHandle<Result<Vec<Request>>>,
}

impl Running {
    /// When the first request is due.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// Waits until every request has ended, and returns them in the order they were due.
    pub fn finish(self) -> Result<Vec<Request>> {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A load that goes on until it is finished.
pub struct Endless {
    /// The thread goes on for as long as somebody else holds this, too.
    wanted: Arc<()>,
    running: Running,
}

impl Endless {
    /// When the first request is due.
    pub fn begin(&self) -> Instant {
        self.running.begin
    }

    /// Ends it, waits until every request has ended, and returns when the first was due, and all of
    /// them in the order they were due.
    pub fn finish(self) -> Result<(Instant, Vec<Request>)> {
        drop(self.wanted);
        Ok((self.running.begin(), self.running.finish()?))
    }
}

/// Makes one GET from the calling thread.
pub fn get_once(target: SocketAddr, path: &str, timeout: Duration) -> Result<Outcome> {
    Ok(runtime()?.block_on(get(target, path, Instant::now() + timeout)))
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")
}

/// One connection with one GET, until the server closes it.
async fn get(target: SocketAddr, path: &str, late: Instant) -> Outcome {
    match timeout_at(late.into(), exchange(target, path)).await {
        Err(_) => Outcome::TimedOut,
        Ok(Err(error)) => Outcome::of_error(error.kind()),
        Ok(Ok(answer)) => Outcome::of_answer(&answer),
    }
}

async fn exchange(target: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
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

/// Wakes at a given time, to some 50 µs; the runtime's own timer knows only milliseconds.
struct Alarm(AsyncFd<Timer>);

/// What the runtime needs to know of a timer.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("timerfd_create")?;
        // SAFETY: the timer owns its descriptor, and nobody closes or replaces it while it does.
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) };
        Ok(Self(
            timer.map_err(io::Error::from).context("watch a timer")?,
        ))
    }

    async fn wait(&self, time: Instant) -> Result<()> {
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Behind the schedule: let the connections work, then go on at once.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        let timer = &self.0.get_ref().0;
        timer
            .set(once, TimerSetTimeFlags::empty())
            .context("timerfd_settime")?;
        self.0
            .readable()
            .await
            .context("wait for a timer")?
            .clear_ready();
        Ok(())
    }
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
        assert_eq!(load.due(0), Duration::ZERO);
        assert_eq!(load.due(300), Duration::from_secs(1));
        assert_eq!(load.due(1_500), Duration::from_secs(5));
        let steps: Vec<_> = (0..300).map(|i| load.due(i + 1) - load.due(i)).collect();
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
