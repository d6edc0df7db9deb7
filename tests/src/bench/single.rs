//! Traffic of which one thread has both ends: what is sent is received on the way back from the
//! system call, so nothing waits for a scheduler, and the packets cost all there is to cost.
//!
//! Two topologies that differ in nothing but the gate take turns of some milliseconds, so that
//! whatever else the machine does meets both; then they swap the gate, so that they may differ
//! after all.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use super::path::Path;
use crate::iperf3::processors;
use crate::topology::{Side, Topology};

/// One turn.
const SLICE: Duration = Duration::from_millis(10);
/// What is sent at once.
const CHUNK: usize = 128 * 1024;
/// Longer than anything takes that isn't lost.
const LIMIT: Duration = Duration::from_secs(5);

/// One of the two.
pub struct Lane {
    topology: Topology,
    client: Side,
    target: SocketAddr,
    work: Work,
}

enum Work {
    Connections(TcpListener),
    Stream { from: TcpStream, to: TcpStream },
}

impl Lane {
    /// New connections, one after the other, each of four packets.
    pub fn connections(path: Path, target: SocketAddr) -> Result<Self> {
        let topology = Topology::new()?;
        let listener = listen(&topology, target)?;
        Ok(Self {
            topology,
            client: path.client(),
            target,
            work: Work::Connections(listener),
        })
    }

    /// Bytes over one connection, to the server or from it.
    pub fn stream(path: Path, target: SocketAddr, from_server: bool) -> Result<Self> {
        let topology = Topology::new()?;
        let listener = listen(&topology, target)?;
        let (client, server) = topology.run(path.client(), || pair(&listener, target))?;
        let (from, to) = match from_server {
            true => (server, client),
            false => (client, server),
        };
        from.set_nodelay(true).context("TCP_NODELAY")?;
        from.set_nonblocking(true).context("O_NONBLOCK")?;
        from.set_write_timeout(Some(LIMIT)).context("SO_SNDTIMEO")?;
        to.set_read_timeout(Some(LIMIT)).context("SO_RCVTIMEO")?;
        Ok(Self {
            topology,
            client: path.client(),
            target,
            work: Work::Stream { from, to },
        })
    }

    /// Where its gate is.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Connections or bits, and the time they took.
    pub(super) fn turn(&self) -> Result<(f64, Duration)> {
        self.topology.run(self.client, || {
            if let Some(&first) = processors()?.first() {
                let mut set = CpuSet::new();
                set.set(first).context("CPU_SET")?;
                // Of this thread, which ends here.
                sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")?;
            }
            let start = Instant::now();
            let done = match &self.work {
                Work::Connections(listener) => connect(listener, self.target, start)?,
                Work::Stream { from, to } => 8.0 * pump(from, to, start)?,
            };
            Ok((done, start.elapsed()))
        })
    }
}

/// What each of the two did in a second, over `turns` each, neither of them always first.
pub fn race(one: &Lane, other: &Lane, turns: u32) -> Result<(f64, f64)> {
    let mut sums = [(0.0, Duration::ZERO); 2];
    for turn in 0..turns.max(1) {
        let mut order = [0, 1];
        if turn % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let (done, took) = [one, other][index].turn()?;
            sums[index].0 += done;
            sums[index].1 += took;
        }
    }
    let [one, other] = sums.map(|(done, took)| done / took.as_secs_f64());
    ensure!(one > 0.0 && other > 0.0, "nothing got through");
    Ok((one, other))
}

fn listen(topology: &Topology, target: SocketAddr) -> Result<TcpListener> {
    topology.run(Side::Server, || {
        TcpListener::bind(target).with_context(|| format!("listen on {target}"))
    })
}

fn pair(listener: &TcpListener, target: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    let (server, _) = listener.accept().context("accept")?;
    Ok((client, server))
}

/// Connections, which their client resets, so that nothing of them stays.
fn connect(listener: &TcpListener, target: SocketAddr, start: Instant) -> Result<f64> {
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let mut count = 0_u32;
    while count == 0 || start.elapsed() < SLICE {
        let (client, server) = pair(listener, target)?;
        setsockopt(&client, sockopt::Linger, &reset).context("SO_LINGER")?;
        drop(client);
        drop(server);
        count += 1;
    }
    Ok(f64::from(count))
}

/// Bytes that came through; nothing is on the way when it returns.
fn pump(mut from: &TcpStream, mut to: &TcpStream, start: Instant) -> Result<f64> {
    let (out, mut into) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut moved, mut on_the_way) = (0, 0);
    while moved == 0 || on_the_way > 0 || start.elapsed() < SLICE {
        if moved == 0 || start.elapsed() < SLICE {
            match from.write(&out) {
                Ok(sent) => on_the_way += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("send"),
            }
        }
        if on_the_way > 0 {
            let received = to.read(&mut into).context("receive")?;
            if received == 0 {
                bail!("the connection ended");
            }
            on_the_way -= received;
            moved += received;
        }
    }
    Ok(moved as f64)
}
