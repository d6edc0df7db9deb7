//! Under load.

use std::net::SocketAddr;
use std::thread::sleep;

use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::listener::{Gap, Watch};
use gate_tests::load::{Load, Outcome};
use gate_tests::service::Service;
use gate_tests::topology::{Side, Topology, server_v4};
use nix::sys::signal::Signal;

use crate::common::{BEFORE_RETRANSMISSION, LIMIT, MS, PORT, gate, gate_status, up};
use crate::{LOOPBACK, assert_none, assert_refused_at_closes_only, watch};

/// How often these tests kill the backend.
const KILLS: u32 = 20;
/// New connections a second meanwhile.
const RATE: u32 = 500;

/// Kills the backend again and again under load, and starts it anew after a while.
fn killed_under_load(topology: &Topology, target: SocketAddr, from: Side) {
    let _watcher = watch(topology, &[&target.to_string(), "--for", "30s"]);
    let mut service = Service::start(topology, Options::new(target)).unwrap();
    let gaps = Watch::start(topology, target).unwrap();
    let round = 250 * MS;
    let load = Load::new(target, RATE, round * KILLS);
    let running = load.start_at(topology, from).unwrap();
    let begin = running.begin();
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        sleep(round / 2);
        let killing = begin.elapsed();
        service.process().signal(Signal::SIGKILL).unwrap();
        service.process().wait(LIMIT).unwrap();
        kills.push(killing..begin.elapsed());
        sleep(50 * MS);
        service = Service::start(topology, Options::new(target)).unwrap();
    }
    let requests = running.finish().unwrap();
    let gaps = gaps.finish().unwrap();
    let outage = gaps.iter().map(Gap::length).max().unwrap();
    let answered = requests.iter().filter(|r| r.outcome == Outcome::Ok);
    let latest = answered.map(|r| r.latency).max().unwrap();
    let gate = gate_status(topology, &target.to_string());
    let held = gate.stats.counts[Counter::Held as usize];
    let reset = requests.iter().filter(|r| r.outcome == Outcome::Reset);
    println!(
        "{KILLS} kills, {} gaps of {outage:?} at the most; {} requests, {held} held, {} reset, the \
         latest answered after {latest:?}",
        gaps.len(),
        requests.len(),
        reset.count()
    );
    assert_none(&requests, &[Outcome::TimedOut]);
    assert_refused_at_closes_only(&requests, &kills);
    assert_eq!(kills.len() as u32, KILLS);
    assert!(held > 0);
    assert!(
        latest < outage + BEFORE_RETRANSMISSION,
        "{outage:?} {latest:?}"
    );
}

#[test]
fn a_backend_that_is_killed_refuses_nobody() {
    let topology = up();
    killed_under_load(&topology, server_v4(PORT), Side::Client);
}

#[test]
fn a_backend_that_is_killed_refuses_nobody_on_loopback() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "lo"]);
    killed_under_load(&topology, LOOPBACK.parse().unwrap(), Side::Server);
}
