//! Handovers under load: no connection is lost, and each is wholly at one backend. Needs root.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{assert_sent_again_only_while_held, gate, tcp_counters};
use gate_tests::bench::handover::Options;
use gate_tests::bench::handover::endurance::{Endured, endure};
use gate_tests::bench::handover::pair::{Backend, Kind, Which};
use gate_tests::bench::path::Path;
use gate_tests::load::Outcome;
use gate_tests::talk::{Talk, Talks};
use gate_tests::topology::{Side, Topology};

const RATE: u32 = 500;
const GATE: &str = "10.0.0.5:8080";

fn options(handovers: u32, stop: bool) -> Options {
    Options {
        part: Vec::new(),
        path: Vec::new(),
        backends: Vec::new(),
        handovers,
        rate: RATE,
        stop,
        switches: 0,
        rounds: None,
        connections: 0,
        seconds: 1,
        json: true,
    }
}

#[track_caller]
fn assert_none_lost(endured: &Endured) {
    let lost = endured.talks.iter();
    let lost: Vec<&Talk> = lost.filter(|talk| talk.outcome != Outcome::Ok).collect();
    assert!(lost.is_empty(), "{} lost, as {:?}", lost.len(), lost[0]);
    assert_eq!(endured.at_both(), 0);
    let (a, b) = (endured.wholly_at(Which::A), endured.wholly_at(Which::B));
    assert_eq!(a + b, endured.talks.len());
    // Whichever way a handover is slower, each had its time.
    assert!(a > 100 && b > 100, "{a} at A, {b} at B");
}

#[test]
fn fifty_handovers_lose_nothing_over_a_cable() {
    assert_none_lost(&endure(&options(50, false), Path::Veth, Kind::Lab).unwrap());
}

#[test]
fn fifty_handovers_lose_nothing_over_loopback() {
    assert_none_lost(&endure(&options(50, false), Path::Loopback, Kind::Lab).unwrap());
}

#[test]
fn each_backend_can_be_stopped_once_it_is_drained() {
    assert_none_lost(&endure(&options(10, true), Path::Veth, Kind::Lab).unwrap());
}

/// Both backends, and connections to A's address all the time.
struct Load<'a> {
    b: Backend<'a>,
    _a: Backend<'a>,
    talking: gate_tests::talk::Talking,
}

impl<'a> Load<'a> {
    fn start(topology: &'a Topology) -> Self {
        let a = Backend::start(topology, Kind::Lab, Which::A).unwrap();
        let b = Backend::start(topology, Kind::Lab, Which::B).unwrap();
        let talking = Talks::new(Which::A.address(), RATE)
            .start(topology, Side::Client)
            .unwrap();
        sleep(Duration::from_millis(300));
        Self { b, _a: a, talking }
    }
}

#[test]
fn a_backend_that_dies_takes_only_its_own_connections_along() {
    let topology = Topology::new().unwrap();
    let load = Load::start(&topology);
    Which::B.hand_over(&topology).unwrap();
    sleep(Duration::from_millis(200));
    let Backend::Lab(b) = &load.b else {
        panic!("another backend");
    };
    let dying = load.talking.begin().elapsed();
    b.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    b.wait(Duration::from_secs(10)).unwrap();
    let dead = load.talking.begin().elapsed();
    sleep(Duration::from_millis(500));
    let talks = load.talking.finish().unwrap();
    let count = |outcome| talks.iter().filter(|talk| talk.outcome == outcome).count();
    for outcome in [Outcome::Refused, Outcome::TimedOut, Outcome::BadStatus] {
        assert_eq!(count(outcome), 0, "{outcome}");
    }
    for talk in talks.iter().filter(|talk| talk.outcome != Outcome::Ok) {
        // Closed with nothing unread, or reset.
        assert!(
            matches!(talk.outcome, Outcome::Reset | Outcome::Other),
            "{talk:?}"
        );
        assert!(talk.by.is_empty() || talk.by == ["b"], "{talk:?}");
        assert!(talk.at <= dead && talk.at + talk.took >= dying, "{talk:?}");
    }
    assert!(talks.iter().any(|talk| talk.outcome != Outcome::Ok));
    let later: Vec<&Talk> = talks.iter().filter(|talk| talk.at > dead).collect();
    assert!(later.len() > 100);
    for talk in later {
        assert_eq!(
            (talk.outcome, &talk.by[..]),
            (Outcome::Ok, &["a".to_owned()][..])
        );
    }
    assert!(talks.iter().all(|talk| talk.by.len() < 2));
}

#[test]
fn what_is_held_under_load_is_all_at_the_new_backend_after_the_release() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "eth0"]);
    let load = Load::start(&topology);
    gate(&topology, &["hold", GATE, "--for", "30s"]);
    let held = load.talking.begin().elapsed();
    sleep(Duration::from_millis(200));
    Which::B.hand_over(&topology).unwrap();
    gate(&topology, &["open", GATE]);
    sleep(Duration::from_millis(300));
    let talks = load.talking.finish().unwrap();
    for talk in &talks {
        assert_eq!(talk.outcome, Outcome::Ok, "{talk:?}");
        let by = match talk.at > held {
            true => &["b"][..],
            // It may have been due before, and come after.
            false if talk.by == ["b"] => continue,
            false => &["a"][..],
        };
        assert_eq!(talk.by, by, "{talk:?}");
    }
    assert_sent_again_only_while_held(&topology, GATE);
    let after = talks.iter().filter(|talk| talk.at > held).count();
    assert!(after > 100, "{after}");
}

/// A listener takes a SYN cookie only if it has sent some lately, so one that another listener sent
/// right before the switch would be lost. Behind a closed gate none is under way.
#[test]
fn with_a_hold_not_even_a_syn_cookie_is_lost() {
    let topology = Topology::new().unwrap();
    topology
        .sysctl(Side::Server, "net.ipv4.tcp_syncookies", "2")
        .unwrap();
    gate(&topology, &["up", "eth0"]);
    let load = Load::start(&topology);
    for which in [Which::B, Which::A].into_iter().cycle().take(10) {
        gate(&topology, &["hold", GATE, "--for", "30s"]);
        which.hand_over(&topology).unwrap();
        gate(&topology, &["open", GATE]);
        sleep(Duration::from_millis(20));
    }
    let talks = load.talking.finish().unwrap();
    let mut lost = talks.iter().filter(|talk| talk.outcome != Outcome::Ok);
    assert_eq!(lost.next(), None);
    assert!(talks.iter().all(|talk| talk.by.len() == 1));
    assert!(tcp_counters(&topology, Side::Server)["SyncookiesRecv"] > 100);
}
