//! Status ports: aliases of a gate, existing ones, and what becomes of them when the gate is closed,
//! guarded, drained, restarted and soft-stopped. Needs root.

#[path = "alias/answering.rs"]
mod answering;
#[path = "alias/closed.rs"]
mod closed;
mod common;
#[path = "alias/restarts.rs"]
mod restarts;
#[path = "alias/shown.rs"]
mod shown;
#[path = "alias/soft_stop.rs"]
mod soft_stop;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use common::{BEFORE_RETRANSMISSION, ENDPOINT, LIMIT, connect_once, gate, gate_status, up};
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::alias::State;
use gate_userspace::endpoint::Endpoint;
use gate_userspace::pins::Pins;
use gate_userspace::{drain, steering};
use nix::sys::signal::Signal;

const STATUS_PORT: u16 = 8081;
const STATUS: &str = "10.0.0.5:8081";
const STATUS_V6: &str = "[fd00::5]:8081";

fn by_status() -> SocketAddr {
    server_v4(STATUS_PORT)
}

/// A backend at these addresses, and the gate `web` of these endpoints.
#[track_caller]
fn web(listen: &[&str], endpoints: &[&str]) -> (Topology, Service) {
    let topology = up();
    let service = start(&topology, listen);
    gate(&topology, &[&["define", "web"], endpoints].concat());
    (topology, service)
}

#[track_caller]
fn start(topology: &Topology, listen: &[&str]) -> Service {
    let listen: Vec<SocketAddr> = listen.iter().map(|it| it.parse().unwrap()).collect();
    let options = Options {
        listen: listen.clone(),
        ..Options::new(listen[0])
    };
    Service::start(topology, options).unwrap()
}

/// The gate `web` of one endpoint, with an alias.
#[track_caller]
fn web_with_alias() -> (Topology, Service) {
    let (topology, service) = web(&[ENDPOINT], &[ENDPOINT]);
    gate(&topology, &["alias", "web", STATUS]);
    (topology, service)
}

#[track_caller]
fn kill(service: &Service) {
    service.process().signal(Signal::SIGKILL).unwrap();
    service.process().wait(LIMIT).unwrap();
}

#[track_caller]
fn assert_refused_at_once(topology: &Topology, target: SocketAddr) {
    let attempt = connect_once(topology, target);
    assert_eq!(attempt.result, Err(ErrorKind::ConnectionRefused));
    assert!(attempt.took < BEFORE_RETRANSMISSION, "{attempt:?}");
}

#[track_caller]
fn open_stream(topology: &Topology, target: SocketAddr) -> TcpStream {
    let connect = || Ok(TcpStream::connect_timeout(&target, LIMIT)?);
    let stream = topology.run(Side::Client, connect).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n";

/// One request and its answer, byte for byte.
#[track_caller]
fn ask(mut stream: &TcpStream) {
    stream.write_all(REQUEST).unwrap();
    expect(stream, 1);
}

#[track_caller]
fn expect(mut stream: &TcpStream, answers: usize) {
    for index in 0..answers {
        let mut answer = vec![0; RESPONSE.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, RESPONSE, "answer {index}");
    }
}

/// How many connections come by an address.
#[track_caller]
fn connections(topology: &Topology, endpoint: &str) -> usize {
    let endpoint: Endpoint = endpoint.parse().unwrap();
    let look = || Ok(drain::connections(&[endpoint])?.connections.len());
    topology.run(Side::Server, look).unwrap()
}

/// The states of the gate's status ports.
#[track_caller]
fn states(topology: &Topology) -> Vec<State> {
    let aliases = gate_status(topology, "web").aliases;
    aliases.into_iter().map(|(_, state)| state).collect()
}

#[track_caller]
fn has_lookup(topology: &Topology) -> bool {
    let look = || Ok(steering::has_lookup(&Pins::here()?));
    topology.run(Side::Server, look).unwrap()
}
