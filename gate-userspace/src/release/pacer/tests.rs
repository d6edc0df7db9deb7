use std::collections::BTreeSet;

use gate_common::flow::{Address, EndpointKey, FlowKey, Isn, Port};
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const NOBODY: [u16; 0] = [];

fn at(ms: u64) -> BootTime {
    BootTime(ms * MS)
}

fn ends(client: u16) -> Ends {
    Ends {
        local: "10.0.0.5:80".parse().unwrap(),
        remote: SocketAddr::new("10.0.0.1".parse().unwrap(), client),
        ifindex: 2,
    }
}

/// What the client with that port sent, that many milliseconds after boot.
fn entry(client: u16, ms: u64) -> Entry {
    let flow = FlowKey {
        endpoint: EndpointKey::new(Address::from_v4([10, 0, 0, 5]), Port::new(80)),
        source: Address::from_v4([10, 0, 0, 1]),
        source_port: Port::new(client),
        zero: 0,
    };
    Entry {
        attempt: AttemptKey {
            flow,
            isn: Isn::from_octets([0; 4]),
        },
        gate: GateId(1),
        arrived: at(ms),
        ends: Some(ends(client)),
    }
}

fn listener(number: u8) -> Taker {
    Taker::Listener(Cookie([number; 8]))
}

fn queue(queued: u32, backlog: u32) -> Queue {
    Queue { queued, backlog }
}

fn pacer() -> Pacer {
    Pacer::new(None, usize::MAX, at(0))
}

/// Sends all that may go, and returns who that was.
fn go(pacer: &mut Pacer, now: BootTime) -> Vec<u16> {
    let taken = pacer.take(usize::MAX, now);
    for (taker, entry) in &taken {
        pacer.sent(*taker, entry, now);
    }
    clients(&taken)
}

fn clients(taken: &[(Taker, Entry)]) -> Vec<u16> {
    let port = |(_, entry): &(Taker, Entry)| entry.attempt.flow.source_port.number();
    taken.iter().map(port).collect()
}

#[test]
fn half_a_backlog_is_in_flight_at_the_most() {
    for (queued, backlog, under_way, expected) in [
        (0, 128, 0, 64),
        (10, 128, 20, 34),
        (64, 128, 0, 0),
        (200, 128, 0, 0),
        (0, 1, 0, 1),
        (0, 0, 0, 1),
        (1, 0, 0, 0),
        (0, 3, 0, 1),
    ] {
        let room = room(queue(queued, backlog), under_way, usize::MAX);
        assert_eq!(room, expected, "{queued} {backlog} {under_way}");
    }
    assert_eq!(room(queue(0, 128), 5, 8), 3);
}

#[test]
fn nobody_goes_to_a_listener_that_was_not_looked_at() {
    let mut pacer = pacer();
    pacer.add(listener(1), entry(1, 1));
    assert_eq!(go(&mut pacer, at(9)), NOBODY);
    pacer.look(listener(1), queue(0, 4), at(9));
    assert_eq!(go(&mut pacer, at(9)), [1]);
}

#[test]
fn the_oldest_go_first_and_a_full_listener_keeps_only_its_own() {
    let mut pacer = pacer();
    for client in 1..=6 {
        pacer.add(listener((client % 2) as u8), entry(client, client.into()));
    }
    pacer.add(Taker::Unknown, entry(7, 7));
    pacer.look(listener(0), queue(2, 4), at(9));
    pacer.look(listener(1), queue(0, 4), at(9));
    assert_eq!(go(&mut pacer, at(9)), [1, 3, 7]);
    pacer.look(listener(0), queue(0, 100), at(9));
    assert_eq!(go(&mut pacer, at(9)), [2, 4, 6]);
    assert_eq!(pacer.len(), 1);
}

#[test]
fn who_joins_another_lane_keeps_his_place() {
    let mut pacer = pacer();
    pacer.add(listener(1), entry(3, 3));
    pacer.add(listener(1), entry(5, 5));
    pacer.add(listener(2), entry(4, 4));
    for entry in pacer.evict(listener(2)) {
        pacer.add(listener(1), entry);
    }
    pacer.look(listener(1), queue(0, 100), at(9));
    assert_eq!(go(&mut pacer, at(9)), [3, 4, 5]);
}

#[test]
fn what_is_put_back_is_first_again() {
    let mut pacer = pacer();
    for client in 1..=4 {
        pacer.add(listener(1), entry(client, client.into()));
    }
    pacer.look(listener(1), queue(0, 100), at(9));
    let mut taken = pacer.take(3, at(9));
    let rest = taken.split_off(1);
    pacer.put_back(rest);
    assert_eq!(go(&mut pacer, at(9)), [2, 3, 4]);
}

#[test]
fn a_handshake_under_way_counts_until_it_is_over_or_too_old() {
    let mut pacer = pacer();
    for client in 1..=9 {
        pacer.add(listener(1), entry(client, client.into()));
    }
    assert!(!pacer.look(listener(1), queue(0, 8), at(10)));
    assert_eq!(go(&mut pacer, at(10)), [1, 2, 3, 4]);
    // All four may be under way, which keeps the others: it is worth to ask.
    assert!(pacer.look(listener(1), queue(0, 8), at(11)));
    assert_eq!(go(&mut pacer, at(11)), NOBODY);
    let some = Met::Listener(Cookie([1; 8]), queue(0, 8));
    let met = [Met::Handshake, Met::Connection, some, Met::Nothing];
    pacer.confirm(listener(1), &met, at(11));
    // The two that are not there yet have a moment to arrive.
    pacer.look(listener(1), queue(1, 8), at(11));
    assert_eq!(pacer.under_way(listener(1)).len(), 3);
    assert_eq!(go(&mut pacer, at(11)), NOBODY);
    let met = [Met::Handshake, some, Met::Nothing];
    pacer.confirm(listener(1), &met, at(13));
    pacer.look(listener(1), queue(1, 8), at(13));
    assert_eq!(pacer.under_way(listener(1)), [ends(1)]);
    assert_eq!(go(&mut pacer, at(13)), [5, 6]);
    // The first is too far away, or gone, after 200 ms.
    let met = [Met::Handshake, Met::Connection, Met::Connection];
    pacer.confirm(listener(1), &met, at(210));
    pacer.look(listener(1), queue(3, 8), at(210));
    assert_eq!(go(&mut pacer, at(210)), [7]);
}

#[test]
fn a_handshake_that_nobody_asks_about_grows_old_too() {
    let mut pacer = pacer();
    for client in 1..=2 {
        pacer.add(listener(1), entry(client, client.into()));
    }
    pacer.look(listener(1), queue(0, 2), at(10));
    assert_eq!(go(&mut pacer, at(10)), [1]);
    assert!(pacer.look(listener(1), queue(0, 2), at(209)));
    assert!(!pacer.look(listener(1), queue(0, 2), at(210)));
    assert_eq!(go(&mut pacer, at(210)), [2]);
}

#[test]
fn an_absent_listener_is_waited_for_unless_there_is_no_time() {
    let mut pacer = pacer();
    let address = "10.0.0.5:80".parse().unwrap();
    pacer.add(Taker::Absent(address), entry(1, 1));
    assert_eq!(pacer.heads(), [(Taker::Absent(address), ends(1))]);
    assert_eq!(go(&mut pacer, at(9)), NOBODY);
    pacer.unpace();
    assert_eq!(pacer.heads(), []);
    assert_eq!(go(&mut pacer, at(9)), [1]);
}

#[test]
fn the_rate_holds_for_all_takers_together() {
    let mut pacer = Pacer::new(Rate::per_second(200), usize::MAX, at(0));
    for client in 1..=8 {
        let taker = [Taker::Unknown, listener(1)][usize::from(client % 2)];
        pacer.add(taker, entry(client, client.into()));
    }
    pacer.look(listener(1), queue(0, 100), at(10));
    assert_eq!(go(&mut pacer, at(10)), [1, 2]);
    assert_eq!(pacer.wait(at(10)), Duration::from_millis(5));
    assert_eq!(go(&mut pacer, at(15)), [3]);
    assert!(!pacer.is_ready(at(15)));
}

#[test]
fn the_longer_nothing_goes_the_less_often_it_is_looked_at() {
    let pacer = pacer();
    assert_eq!(pacer.wait(at(1)), Duration::from_millis(1));
    assert_eq!(pacer.wait(at(500)), Duration::from_millis(10));
    assert_eq!(pacer.wait(at(60_000)), Duration::from_millis(20));
}

/// A listener of the kernel, as far as it matters here.
struct Model {
    backlog: u32,
    /// Clients whose handshake is under way, with its end.
    handshakes: Vec<(u16, u64)>,
    queued: Vec<u16>,
    accepted: usize,
    most: usize,
}

impl Model {
    fn met(&self, ends: &Ends) -> Met {
        let client = ends.remote.port();
        match self.handshakes.iter().any(|(other, _)| *other == client) {
            true => Met::Handshake,
            false => Met::Connection,
        }
    }

    fn queue(&self) -> Queue {
        queue(self.queued.len() as u32, self.backlog)
    }

    fn pass(&mut self, now: u64, accepts: usize) {
        let over = |(_, end): &(u16, u64)| *end <= now;
        let done: Vec<u16> = self
            .handshakes
            .iter()
            .filter(|it| over(it))
            .map(|it| it.0)
            .collect();
        self.handshakes.retain(|it| !over(it));
        self.queued.extend(done);
        let accepts = accepts.min(self.queued.len());
        self.accepted += accepts;
        self.queued.drain(..accepts);
        self.most = self.most.max(self.queued.len() + self.handshakes.len());
    }
}

proptest! {
    /// Whatever the backlog, the distances and the listener's speed: never more than half the
    /// backlog in flight, in order for each listener, everybody once, and it comes to an end.
    #[test]
    fn no_listener_ever_has_more_than_half_its_backlog(
        count in 1_u16..120,
        backlogs in prop::collection::vec(0_u32..40, 1..4),
        distances in prop::collection::vec(0_u64..100, 1..20),
        speeds in prop::collection::vec(0_usize..6, 1..20),
        rate in prop::option::of(100_u32..100_000),
    ) {
        prop_assume!(speeds.iter().any(|speed| *speed > 0));
        let mut pacer = Pacer::new(rate.and_then(Rate::per_second), usize::MAX, at(0));
        let mut models: Vec<Model> = backlogs
            .iter()
            .map(|backlog| Model {
                backlog: *backlog,
                handshakes: Vec::new(),
                queued: Vec::new(),
                accepted: 0,
                most: 0,
            })
            .collect();
        let which = |client: u16| usize::from(client) % backlogs.len();
        for client in 0..count {
            pacer.add(listener(which(client) as u8), entry(client, client.into()));
        }
        let (mut went, mut now) = (Vec::new(), 1_000);
        while models.iter().map(|model| model.accepted).sum::<usize>() < usize::from(count) {
            now += 1;
            prop_assert!(now < 200_000, "{} of {count} went", went.len());
            for (index, model) in models.iter_mut().enumerate() {
                model.pass(now, speeds[now as usize % speeds.len()]);
                let taker = listener(index as u8);
                if pacer.look(taker, model.queue(), at(now)) {
                    let met: Vec<Met> =
                        pacer.under_way(taker).iter().map(|ends| model.met(ends)).collect();
                    pacer.confirm(taker, &met, at(now));
                    pacer.look(taker, model.queue(), at(now));
                }
            }
            for client in go(&mut pacer, at(now)) {
                let distance = distances[usize::from(client) % distances.len()];
                models[which(client)].handshakes.push((client, now + distance));
                went.push(client);
            }
            for model in &mut models {
                model.most = model.most.max(model.queued.len() + model.handshakes.len());
            }
        }
        for model in &models {
            let half = (model.backlog / 2).max(1) as usize;
            prop_assert!(model.most <= half, "{} of {}", model.most, model.backlog);
        }
        for index in 0..backlogs.len() {
            let own: Vec<u16> = went.iter().copied().filter(|it| which(*it) == index).collect();
            prop_assert!(own.is_sorted(), "{own:?}");
        }
        let each: BTreeSet<u16> = went.iter().copied().collect();
        prop_assert_eq!(each.len(), went.len());
        prop_assert_eq!(went.len(), usize::from(count));
    }
}
