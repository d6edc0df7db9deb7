//! What the live tests of `gate` share: a server with the gate up, clients that wait for their
//! connections, and what `gate` said and did.

#![allow(
    dead_code,
    reason = "each test binary compiles this anew and uses its own part of it"
)]

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use gate_common::abi::Counter;
use gate_tests::exe;
use gate_tests::topology::{INTERFACE, Output, Place, Side, Topology};
use gate_userspace::attach::NO_TCX;
use gate_userspace::gates::Target;
use gate_userspace::interfaces;
use gate_userspace::pins::Pins;
use gate_userspace::status::{self, GateStatus, Status};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// For what must come sooner or later.
pub const LIMIT: Duration = Duration::from_secs(40);
pub const MS: Duration = Duration::from_millis(1);
/// The port of every backend here.
pub const PORT: u16 = 8080;
/// The endpoint that most tests close.
pub const ENDPOINT: &str = "10.0.0.5:8080";
/// A connection that took less than this was not made by a retransmission, which comes after 1 s.
pub const BEFORE_RETRANSMISSION: Duration = Duration::from_millis(900);
/// The root of gate's pins.
pub const ROOT: &str = "/sys/fs/bpf/gate";

// ---- gate ----

/// A topology with the gate up at the server's interface.
pub fn up() -> Topology {
    let topology = Topology::new().unwrap();
    topology.gate(["up", INTERFACE]).unwrap().ok().unwrap();
    topology
}

/// Runs `gate`, which must exit with 0 and complain of nothing.
#[track_caller]
pub fn gate<S: AsRef<OsStr>>(topology: &Topology, args: &[S]) -> Output {
    let output = topology.gate(args).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(output.stderr, "", "{output}");
    output
}

/// As [`gate`], as if the kernel had no TCX: it attaches by filters.
#[track_caller]
pub fn gate_by_filters<S: AsRef<OsStr>>(topology: &Topology, args: &[S]) -> Output {
    let output = try_by_filters(topology, args);
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(output.stderr, "", "{output}");
    output
}

/// As [`gate_by_filters`], however it ends.
#[track_caller]
pub fn try_by_filters<S: AsRef<OsStr>>(topology: &Topology, args: &[S]) -> Output {
    let mut command = Command::new(exe::gate().unwrap());
    command.args(args).env(NO_TCX, "1");
    topology.output(Side::Server, &mut command, LIMIT).unwrap()
}

/// Runs `gate`, which must fail with this code and one line that has all of these words, print
/// nothing else, and change nothing.
#[track_caller]
pub fn refused<S: AsRef<OsStr>>(topology: &Topology, args: &[S], code: i32, words: &[&str]) {
    let before = snapshot(topology);
    let output = topology.gate(args).unwrap();
    assert_refusal(&output, code, words);
    assert_eq!(snapshot(topology), before, "{output}");
}

/// One line on stderr with all of these words, nothing on stdout, and this exit code.
#[track_caller]
pub fn assert_refusal(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code(), code, "{output}");
    assert_eq!(output.stdout, "", "{output}");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
    assert_complaint(output, words);
}

/// The last line on stderr is gate's, and has all of these words.
#[track_caller]
pub fn assert_complaint(output: &Output, words: &[&str]) {
    assert!(output.stderr.ends_with('\n'), "{output}");
    let line = output.stderr.lines().next_back().unwrap_or_default();
    assert!(line.starts_with("gate: "), "{output}");
    for word in words {
        assert!(line.contains(word), "no {word:?} in: {output}");
    }
}

/// Runs a shell line, which must exit with 0, and returns what it printed.
#[track_caller]
pub fn shell(topology: &Topology, place: impl Into<Place>, line: &str) -> String {
    let mut command = Command::new("sh");
    topology
        .output(place, command.args(["-c", line]), LIMIT)
        .unwrap()
        .ok()
        .unwrap()
        .stdout
}

/// All that `gate` can change: the pins, what is attached, and the gates' modes.
pub fn snapshot(topology: &Topology) -> String {
    let line = "find /sys/fs/bpf -mindepth 1 ! -name '*.debug' -printf '%P %y %m %U %i\\n' | sort";
    let pins = shell(topology, Side::Server, line);
    let interfaces: String = topology
        .run(Side::Server, || Ok(interfaces::list()?))
        .unwrap()
        .iter()
        .map(|interface| format!("{} {:?}\n", interface.name, interface.xdp))
        .collect();
    let gates: String = match topology.run(Side::Server, || Ok(status::read(&Pins::here()?)?)) {
        Ok(Some(status)) => status
            .gates
            .iter()
            .map(|gate| format!("{} {:?} {}\n", gate.gate, gate.mode, gate.waiting.held))
            .collect(),
        Ok(None) => "not up".to_owned(),
        Err(error) => error.to_string(),
    };
    pins + &interfaces + &gates
}

/// The status, read by the library: faster than a process.
#[track_caller]
pub fn status(topology: &Topology) -> Status {
    topology
        .run(Side::Server, || Ok(status::read(&Pins::here()?)?))
        .unwrap()
        .expect("the gate is up")
}

/// The status of one gate, by its name or its endpoint; none where there is none.
#[track_caller]
pub fn find_gate(topology: &Topology, target: &str) -> Option<GateStatus> {
    let target: Target = target.parse().unwrap();
    let is_it = |gate: &GateStatus| gate.gate.to_string() == target.to_string();
    status(topology).gates.into_iter().find(is_it)
}

/// The status of one gate, which must be there.
#[track_caller]
pub fn gate_status(topology: &Topology, endpoint: &str) -> GateStatus {
    find_gate(topology, endpoint).expect("the gate is defined")
}

/// The word for a gate's mode now.
#[track_caller]
pub fn mode(topology: &Topology, endpoint: &str) -> &'static str {
    gate_status(topology, endpoint).mode.name()
}

/// One of a gate's counters.
#[track_caller]
pub fn count(topology: &Topology, endpoint: &str, counter: Counter) -> u64 {
    gate_status(topology, endpoint).stats.counts[counter as usize]
}

/// Waits until this many SYNs are held.
#[track_caller]
pub fn wait_until_held(topology: &Topology, endpoint: &str, held: usize) {
    wait_until("all SYNs are held", || {
        gate_status(topology, endpoint).waiting.held == held
    });
}

/// Waits until a counter has come to this, or more.
#[track_caller]
pub fn wait_until_counted(topology: &Topology, endpoint: &str, counter: Counter, least: u64) {
    wait_until("all SYNs are counted", || {
        count(topology, endpoint, counter) >= least
    });
}

#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let late = Instant::now() + LIMIT;
    while !is_so() {
        assert!(
            Instant::now() < late,
            "waited {LIMIT:?} in vain until {what}"
        );
        sleep(MS * 5);
    }
}

/// How many processes of the topology have a command line that begins with this, the program's
/// folder left out.
#[track_caller]
pub fn running(topology: &Topology, words: &str) -> usize {
    let line = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done 2>/dev/null";
    let begins = |line: &&str| {
        let program = line.split(' ').next().unwrap_or_default();
        let folder = program.rfind('/').map_or(0, |slash| slash + 1);
        line[folder..].starts_with(words)
    };
    shell(topology, Side::Server, line)
        .lines()
        .filter(begins)
        .count()
}

// ---- Connections ----

/// Listens in the server namespace. Nobody accepts: the kernel answers, and the connections stay
/// in the accept queue.
#[track_caller]
pub fn listen(topology: &Topology, address: SocketAddr) -> TcpListener {
    listen_at(topology, Side::Server, address)
}

/// As [`listen`], in any namespace.
#[track_caller]
pub fn listen_at(topology: &Topology, place: impl Into<Place>, address: SocketAddr) -> TcpListener {
    topology
        .run(place, || Ok(TcpListener::bind(address)?))
        .unwrap()
}

/// As [`listen_at`], perhaps bound to a device (`SO_BINDTODEVICE`).
#[track_caller]
pub fn listen_on(
    topology: &Topology,
    place: impl Into<Place>,
    address: SocketAddr,
    device: Option<&str>,
) -> TcpListener {
    let listener = topology.run(place, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind_device(device.map(str::as_bytes))?;
        socket.bind(&address.into())?;
        socket.listen(128)?;
        Ok(socket.into())
    });
    listener.unwrap()
}

/// How one client connects.
#[derive(Clone, Debug)]
pub struct Dial {
    /// To where.
    pub target: SocketAddr,
    /// From where; the kernel chooses a port where it is 0.
    pub source: Option<SocketAddr>,
    /// With which `SO_MARK`.
    pub mark: u32,
    /// Until when it tries.
    pub limit: Duration,
}

impl Dial {
    /// From anywhere.
    pub fn to(target: SocketAddr) -> Self {
        Self {
            target,
            source: None,
            mark: 0,
            limit: LIMIT,
        }
    }

    /// From there.
    pub fn from(self, source: SocketAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    fn connect(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        if let Some(source) = self.source {
            socket.bind(&source.into())?;
        }
        socket.connect_timeout(&self.target.into(), self.limit)?;
        Ok(socket)
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Connected, and not by a retransmission after the gate was open.
    Connected,
    /// Refused.
    Refused,
    /// Nobody answered in time.
    TimedOut,
    /// Otherwise.
    Failed(ErrorKind),
}

/// A client at work.
pub struct Dialling(JoinHandle<anyhow::Result<(Ended, Duration, Option<Socket>)>>);

/// Starts a client.
#[track_caller]
pub fn dial(topology: &Topology, place: impl Into<Place>, how: Dial) -> Dialling {
    let thread = topology.start(place, move || {
        let start = Instant::now();
        let result = how.connect();
        let ended = match result.as_ref().map_err(io::Error::kind) {
            Ok(_) => Ended::Connected,
            Err(ErrorKind::ConnectionRefused) => Ended::Refused,
            Err(ErrorKind::TimedOut) => Ended::TimedOut,
            Err(other) => Ended::Failed(other),
        };
        Ok((ended, start.elapsed(), result.ok()))
    });
    Dialling(thread.unwrap())
}

impl Dialling {
    /// Whether it has ended by now.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(self) -> Ended {
        self.finish_with_socket().0
    }

    /// Waits for the end; the time it took, and the connected socket.
    #[track_caller]
    pub fn finish_with_socket(self) -> (Ended, Duration, Option<Socket>) {
        self.0.join().unwrap().unwrap()
    }
}

/// How one attempt to connect ended.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Its index among those that were started together.
    pub index: usize,
    /// Connected, or why not.
    pub result: Result<(), ErrorKind>,
    /// How long that took.
    pub took: Duration,
}

/// Clients that connect at the same time; each waits for up to [`LIMIT`], and all stay connected
/// until the last is.
pub struct Clients {
    ended: Arc<Mutex<Vec<Attempt>>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Clients {
    /// Starts one.
    #[track_caller]
    pub fn one(topology: &Topology, target: SocketAddr) -> Self {
        Self::start(topology, target, 1, None)
    }

    /// Starts one in any namespace.
    #[track_caller]
    pub fn one_at(topology: &Topology, place: impl Into<Place>, target: SocketAddr) -> Self {
        Self::start_at(topology, place, target, 1, None)
    }

    /// Starts `count` of them, in order; with a first port given each has the next one.
    #[track_caller]
    pub fn start(
        topology: &Topology,
        target: SocketAddr,
        count: usize,
        first_port: Option<u16>,
    ) -> Self {
        Self::start_at(topology, Side::Client, target, count, first_port)
    }

    /// As [`start`](Self::start), from any namespace.
    #[track_caller]
    pub fn start_at(
        topology: &Topology,
        place: impl Into<Place>,
        target: SocketAddr,
        count: usize,
        first_port: Option<u16>,
    ) -> Self {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let mine = Arc::clone(&ended);
        let thread = topology
            .start(place, move || {
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
                setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(connect_all(target, count, first_port, &mine));
                Ok(())
            })
            .unwrap();
        Self { ended, thread }
    }

    /// Those that have ended by now.
    pub fn ended(&self) -> Vec<Attempt> {
        let ended = self.ended.lock();
        ended.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many are connected by now.
    pub fn connected(&self) -> usize {
        self.ended()
            .iter()
            .filter(|attempt| attempt.result.is_ok())
            .count()
    }

    /// Waits until all have ended, and returns them in the order of their ends.
    #[track_caller]
    pub fn finish(self) -> Vec<Attempt> {
        self.thread.join().unwrap().unwrap();
        let ended = self.ended.lock();
        ended.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all are connected, and returns the longest time that one took.
    #[track_caller]
    pub fn finish_connected(self) -> Duration {
        let attempts = self.finish();
        let failed: Vec<_> = attempts.iter().filter(|a| a.result.is_err()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        attempts.iter().map(|a| a.took).max().expect("an attempt")
    }
}

async fn connect_all(
    target: SocketAddr,
    count: usize,
    first_port: Option<u16>,
    ended: &Arc<Mutex<Vec<Attempt>>>,
) {
    let mut clients = JoinSet::new();
    for index in 0..count {
        let port = first_port.map(|first| first + u16::try_from(index).unwrap());
        let ended = Arc::clone(ended);
        clients.spawn(async move {
            let start = Instant::now();
            let (stream, result) = match tokio::time::timeout(LIMIT, connect(target, port)).await {
                Ok(Ok(stream)) => (Some(stream), Ok(())),
                Ok(Err(error)) => (None, Err(error.kind())),
                Err(_) => (None, Err(ErrorKind::TimedOut)),
            };
            ended.lock().unwrap().push(Attempt {
                index,
                result,
                took: start.elapsed(),
            });
            stream
        });
    }
    let _streams: Vec<Option<TcpStream>> = clients.join_all().await;
}

async fn connect(target: SocketAddr, port: Option<u16>) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(port) = port {
        let own = match target {
            SocketAddr::V4(_) => Side::Client.v4().into(),
            SocketAddr::V6(_) => Side::Client.v6().into(),
        };
        socket.bind(SocketAddr::new(own, port))?;
    }
    socket.connect(target).await
}

/// One connection attempt; it must end within the limit.
#[track_caller]
pub fn connect_once(topology: &Topology, target: SocketAddr) -> Attempt {
    Clients::one(topology, target).finish()[0]
}
