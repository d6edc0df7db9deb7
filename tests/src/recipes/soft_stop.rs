//! Two servers behind a HAProxy with sticky cookies, each listed twice, and one of them is taken out
//! of rotation, restarted and brought back under load.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::Host;
use super::users::{self, Seen};
use super::{CALM, LIMIT};
use crate::exe;
use crate::haproxy::{HaProxy, Release};
use crate::iptables::Iptables;
use crate::load::Request;
use crate::nginx::Nginx;
use crate::summary::Summary;
use crate::topology::{Output, Side, Topology, server_v4};

/// The port of HAProxy.
const FRONTEND: u16 = 8000;
/// Where a server serves.
const PORT: u16 = 80;
/// Where HAProxy looks whether new users may come.
const STATUS: u16 = 81;
/// The gate's name, on each server's host.
const GATE: &str = "web";

/// What is done on the server's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The server is restarted, and nothing else.
    Nothing,
    /// iptables forwards the status port; the rule goes, the server is restarted, and the rule comes
    /// back.
    Iptables,
    /// `gate soft-stop`, a restart, `gate soft-start`.
    SoftStop,
    /// The same, but the restart is `gate restart`, for the users who stayed.
    SoftStopAndRestart,
}

/// Which of a server's two ports its users come to while it is in rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// That on which it serves: `server app1 10.0.1.5:80 check port 81`.
    Served,
    /// The status port: `server app1 10.0.1.5:81 check`.
    Status,
}

/// A way to take a server out and back.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What is done.
    pub how: How,
    /// HAProxy's configuration.
    pub layout: Layout,
    /// HAProxy itself.
    pub release: Release,
}

/// How often, and how long each part takes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often a server is taken out; each in turn.
    pub times: usize,
    /// From when it is out of rotation to its restart.
    pub out: Duration,
    /// How long it is away.
    pub outage: Duration,
    /// Visits a second, besides those of the new users who come back.
    pub rate: u32,
}

/// What one server's time out of rotation was.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Its number.
    server: usize,
    /// When HAProxy had noticed.
    out: Instant,
    /// When it was told to come back.
    called: Instant,
    /// When HAProxy had noticed that.
    back: Instant,
    /// How long HAProxy took to notice that it was out.
    noticed: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct SoftStops {
    /// What the users saw.
    pub summary: Summary,
    /// How often a server was taken out.
    pub times: usize,
    /// Sessions lost.
    pub lost: usize,
    /// New users whom a server got while it was out of rotation.
    pub new_while_out: usize,
    /// Visits of present users that it answered then, the least of any time.
    pub present_while_out: usize,
    /// New users whom it got once it was back, the least of any time.
    pub new_when_back: usize,
    /// The longest that HAProxy took to notice.
    pub noticed: Duration,
}

struct Server<'a> {
    nginx: Nginx<'a>,
    host: Host,
    address: SocketAddr,
}

struct Site<'a> {
    topology: &'a Topology,
    case: Case,
    plan: Plan,
    servers: Vec<Server<'a>>,
    haproxy: HaProxy<'a>,
}

impl<'a> Server<'a> {
    fn start(topology: &'a Topology, number: u8) -> Result<Self> {
        let host = Host::new(topology, number)?;
        let address = SocketAddr::new(host.address.ip(), PORT);
        let http = users::server(number.into(), address);
        let nginx = Nginx::start_with(topology, &host.namespace, &host.interface, address, &http)?;
        Ok(Self {
            nginx,
            host,
            address,
        })
    }

    fn status(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), STATUS)
    }
}

impl<'a> Site<'a> {
    fn start(topology: &'a Topology, case: Case, plan: Plan) -> Result<Self> {
        let servers = [1, 2].map(|number| Server::start(topology, number));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        for server in &servers {
            offer(topology, case.how, server)?;
        }
        let listen = server_v4(FRONTEND);
        let backend = configuration(&servers, case.layout);
        let haproxy =
            HaProxy::start_with(topology, Side::Server, case.release, listen, "", &backend)?;
        Ok(Self {
            topology,
            case,
            plan,
            servers,
            haproxy,
        })
    }

    fn gate<S: AsRef<OsStr>>(&self, server: &Server, words: &[S]) -> Result<Output> {
        gate(self.topology, &server.host, words)
    }

    /// Takes one out, restarts it, and brings it back.
    fn take_out(&self, number: usize) -> Result<Turn> {
        let server = &self.servers[number - 1];
        let line = format!("app{number}");
        let told = Instant::now();
        match self.case.how {
            How::Nothing => {}
            How::Iptables => Iptables::stop_forwarding(self.topology, &server.host.namespace)?,
            How::SoftStop | How::SoftStopAndRestart => {
                self.gate(server, &["soft-stop", GATE])?;
            }
        }
        let is_rotated = self.case.how != How::Nothing;
        if is_rotated {
            self.wait_until_it_is(&line, false)?;
        }
        let out = Instant::now();
        sleep(self.plan.out);
        self.restart(server)?;
        let called = Instant::now();
        match self.case.how {
            How::Nothing => {}
            How::Iptables => {
                Iptables::forward(self.topology, &server.host.namespace, STATUS, PORT)?;
            }
            How::SoftStop | How::SoftStopAndRestart => {
                self.gate(server, &["soft-start", GATE])?;
            }
        }
        self.wait_until_it_is(&line, true)?;
        Ok(Turn {
            server: number,
            out,
            called,
            back: Instant::now(),
            noticed: out - told,
        })
    }

    fn restart(&self, server: &Server) -> Result<()> {
        let line = format!(
            "{} && sleep {} && {}",
            server.nginx.stop_and_wait_line(),
            self.plan.outage.as_secs_f64(),
            server.nginx.start_line()
        );
        if self.case.how == How::SoftStopAndRestart {
            let check = format!("http://{}/", server.address);
            let mut words = vec!["restart", GATE, "--check", &check];
            words.extend(["--drain", "5s", "--flush-idle", "100ms", "--"]);
            words.extend(["sh", "-c", &line]);
            return self.gate(server, &words).map(drop);
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]);
        let place = &server.host.namespace;
        self.topology.output(place, &mut shell, LIMIT)?.ok()?;
        Ok(())
    }

    fn wait_until_it_is(&self, line: &str, up: bool) -> Result<()> {
        let late = Instant::now() + LIMIT;
        while self.haproxy.is_up(line)? != up {
            if Instant::now() > late {
                bail!("HAProxy does not notice that {line} is up: {up}");
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Makes the server answer on its status port.
fn offer(topology: &Topology, how: How, server: &Server) -> Result<()> {
    let place = &server.host.namespace;
    match how {
        // Whoever does nothing has the status port all along.
        How::Nothing | How::Iptables => Iptables::forward(topology, place, STATUS, PORT),
        How::SoftStop | How::SoftStopAndRestart => {
            let (address, status) = (server.address.to_string(), server.status().to_string());
            gate(topology, &server.host, &["define", GATE, &address])?;
            gate(topology, &server.host, &["alias", GATE, &status]).map(drop)
        }
    }
}

/// Runs `gate` on this host.
fn gate<S: AsRef<OsStr>>(topology: &Topology, host: &Host, words: &[S]) -> Result<Output> {
    let mut command = Command::new(exe::gate()?);
    topology
        .output(&host.namespace, command.args(words), LIMIT)?
        .ok()
}

/// HAProxy's section `backend app`.
fn configuration(servers: &[Server], layout: Layout) -> String {
    let servers: String = (1..)
        .zip(servers)
        .map(|(number, server): (u8, &Server)| {
            let cookie = char::from(b'a' + number - 1);
            let (served, status) = (server.address, server.status());
            let main = match layout {
                Layout::Served => format!("{served} check port {STATUS}"),
                Layout::Status => format!("{status} check"),
            };
            format!(
                "    server app{number} {main} inter 100ms fall 2 rise 2 cookie {cookie}\n    \
                     server app{number}b {served} check inter 2s fall 5 cookie {cookie} backup\n"
            )
        })
        .collect();
    format!(
        "    balance roundrobin\n    \
             option httpchk GET /\n    \
             option redispatch\n    \
             cookie SRV insert indirect nocache\n\
         {servers}"
    )
}

impl Case {
    /// Takes each server out in turn, as often as planned.
    pub fn run(self, plan: Plan) -> Result<SoftStops> {
        let topology = Topology::new()?;
        let site = Site::start(&topology, self, plan)?;
        for line in ["app1", "app2"] {
            site.wait_until_it_is(line, true)?;
        }
        let load = users::visit(&topology, server_v4(FRONTEND), plan.rate)?;
        let begin = load.begin();
        let mut turns = Vec::with_capacity(plan.times);
        for time in 0..plan.times {
            sleep(CALM * 2);
            let turn = site.take_out(time % site.servers.len() + 1);
            turns.push(turn.with_context(|| format!("time {}", time + 1))?);
        }
        sleep(CALM * 2);
        let (_, seen) = load.finish()?;
        let seen: Vec<Seen> = seen.into_iter().flatten().collect();
        Ok(SoftStops::new(&seen, &turns, begin, plan.outage))
    }
}

impl SoftStops {
    fn new(seen: &[Seen], turns: &[Turn], begin: Instant, outage: Duration) -> Self {
        let requests: Vec<Request> = seen.iter().map(|one| one.request).collect();
        let due = |one: &Seen| begin + one.request.at;
        let at = |turn: &Turn, first, from: Instant, to: Instant| {
            let there = |one: &&Seen| one.server == turn.server && one.first == first;
            let then = |one: &&Seen| from <= due(one) && due(one) < to;
            seen.iter().filter(there).filter(then).count()
        };
        let while_out = |turn: &Turn, first| at(turn, first, turn.out, turn.called);
        let back = |turn: &Turn| at(turn, true, turn.back, turn.back + CALM * 2);
        Self {
            summary: Summary::new(&requests, outage),
            times: turns.len(),
            lost: seen.iter().filter(|one| one.lost).count(),
            new_while_out: turns.iter().map(|turn| while_out(turn, true)).sum(),
            present_while_out: turns
                .iter()
                .map(|turn| while_out(turn, false))
                .min()
                .unwrap_or(0),
            new_when_back: turns.iter().map(back).min().unwrap_or(0),
            noticed: turns
                .iter()
                .map(|turn| turn.noticed)
                .max()
                .unwrap_or_default(),
        }
    }
}
