//! Listeners, and clients that wait for their connections.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gate_common::abi::Counter;
use gate_tests::topology::{Place, Side, Topology};
use gate_userspace::sockets;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::{LIMIT, count, shell, tcp_info, wait_until};

/// Listens in the server namespace. Nobody accepts: the kernel answers, and the connections stay
/// in the accept queue.
#[track_caller]
pub fn listen(topology: &Topology, address: SocketAddr) -> TcpListener {
    listen_at(topology, Side::Server, address)
}

/// Closes a listener, and waits until nobody has it: a command that another test starts may have its
/// descriptor for a moment, between fork and exec.
#[track_caller]
pub fn close(topology: &Topology, listener: impl Into<Socket>) {
    close_at(topology, Side::Server, listener);
}

/// As [`close`], in any namespace.
#[track_caller]
pub fn close_at(topology: &Topology, place: impl Into<Place>, listener: impl Into<Socket>) {
    let place = place.into();
    let listener = listener.into();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    drop(listener);
    let endpoint = address.to_string().parse().unwrap();
    wait_until("nobody listens", || {
        let listeners = topology.run(place.clone(), || Ok(sockets::listeners(endpoint)?));
        listeners.unwrap() == 0
    });
}

/// As [`listen`], in any namespace. A release fills half of a backlog where nobody accepts, so this
/// one is long.
#[track_caller]
pub fn listen_at(topology: &Topology, place: impl Into<Place>, address: SocketAddr) -> TcpListener {
    let listener = topology.run(place, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    });
    listener.unwrap()
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

    /// For that long.
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
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
    /// How often its SYN was sent again.
    pub sent_again: u32,
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

    /// As [`finish_connected`](Self::finish_connected). All were held and released: no SYN was
    /// sent again but while the gate held it, however long that took.
    #[track_caller]
    pub fn finish_released(self, topology: &Topology, target: &str) {
        assert_only_while_held(topology, target, self.finish_sent_again());
    }

    /// Waits until all are connected, and returns how many SYNs were sent again.
    #[track_caller]
    pub fn finish_sent_again(self) -> u64 {
        let attempts = self.finish();
        assert!(attempts.iter().all(|a| a.result.is_ok()), "{attempts:?}");
        attempts.iter().map(|a| u64::from(a.sent_again)).sum()
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
            let took = start.elapsed();
            let info = stream.as_ref().map(tcp_info);
            ended.lock().unwrap().push(Attempt {
                index,
                result,
                took,
                sent_again: info.map_or(0, |info| info.tcpi_total_retrans),
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

/// TCP's own counters in a namespace, those of `TcpExt` in /proc/net/netstat.
pub fn tcp_counters(topology: &Topology, side: Side) -> BTreeMap<String, u64> {
    let text = shell(topology, side, "cat /proc/thread-self/net/netstat");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("TcpExt:"))
        .collect();
    let words = |line: &str| {
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let names = words(lines[0]).into_iter();
    names
        .zip(words(lines[1]))
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

/// That no client of the topology sent its SYN again but while the gate held it: what connected behind a
/// closed gate did by a release, however long that took.
#[track_caller]
pub fn assert_sent_again_only_while_held(topology: &Topology, target: &str) {
    let sent_again = tcp_counters(topology, Side::Client)["TCPSynRetrans"];
    assert_only_while_held(topology, target, sent_again);
}

/// That so many SYNs were sent again while the gate held them.
#[track_caller]
pub fn assert_only_while_held(topology: &Topology, target: &str, sent_again: u64) {
    let held = count(topology, target, Counter::Refreshed);
    assert!(
        sent_again <= held,
        "{sent_again} SYNs sent again, {held} while held"
    );
}
