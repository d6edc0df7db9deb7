//! Frames that the pure function and the kernel must judge alike: the action, the frame that is
//! sent back or held, and which counters moved (all others must stand still).

use std::time::Duration;

use anyhow::Result;
use gate_common::abi::Counter;
use gate_common::flow::{Address, AttemptKey, EndpointKey, FlowKey, GateId, Isn, Port};
use gate_common::parse::{Family, Frame, Located, locate};
use gate_common::state::{BootTime, Closed, StateWord};
use gate_tests::kernel::{Action, Effect, Kernel, Pure, Setup};
use gate_tests::packet::{Checksum, Spec, extension, flags, options_header};
use gate_userspace::clock;
use gate_userspace::hooks::Slot;

const GATE: GateId = GateId(1);
const OTHER: GateId = GateId(2);

fn v4(octets: [u8; 4], port: u16) -> EndpointKey {
    EndpointKey::new(Address::from_v4(octets), Port::new(port))
}

fn v6(port: u16) -> EndpointKey {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[15] = 5;
    EndpointKey::new(Address::from_v6(octets), Port::new(port))
}

fn any(port: u16) -> EndpointKey {
    EndpointKey::new(Address::ANY, Port::new(port))
}

/// A lease that runs through the test, or one that ran out.
fn word(mode: Closed, running: bool) -> StateWord {
    let now = clock::now().0;
    let deadline = if running {
        now + 3_600_000_000_000
    } else {
        now / 2
    };
    StateWord::closed(mode, BootTime(deadline))
}

fn setup(mode: Closed) -> Setup {
    Setup {
        armed: true,
        endpoints: vec![(v4([10, 0, 0, 5], 8080), GATE), (v6(8080), GATE)],
        words: vec![(GATE, word(mode, true))],
        released: Vec::new(),
        checks: Vec::new(),
    }
}

/// Each test runs on each hook.
macro_rules! on_every_hook {
    ($($test:ident),* $(,)?) => {
        on_every_hook!(@xdp Xdp $($test)*);
        on_every_hook!(@tc_ingress TcIngress $($test)*);
        on_every_hook!(@tc_egress TcEgress $($test)*);
    };
    (@$hook:ident $slot:ident $($test:ident)*) => {
        mod $hook {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    super::$test(gate_userspace::hooks::Slot::$slot)
                }
            )*
        }
    };
}

on_every_hook!(
    what_is_a_syn_and_what_is_not,
    every_flag_byte,
    truncated_at_every_length,
    which_gate_and_which_mode,
    a_reset_is_correct,
    a_retransmission_replaces_the_frame_and_keeps_the_time,
    a_full_table_drops_and_counts,
    a_retransmission_after_the_lease_is_not_followed_by_the_held_copy,
    a_lease_ends_on_time,
    any_frame_is_judged_alike,
);

/// Addresses a frame to the device of a test run, which is loopback: its address is all zeros.
fn to_this_host(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].fill(0);
    frame
}

/// What is expected of a frame.
enum Expect {
    Pass,
    PassCounted(GateId, Counter),
    Unparsed,
    Hold,
    Drop(Counter),
    Reply,
}

struct Case {
    name: &'static str,
    setup: Setup,
    frame: Vec<u8>,
    expect: Expect,
}

fn case(name: &'static str, setup: Setup, frame: Vec<u8>, expect: Expect) -> Case {
    Case {
        name,
        setup,
        frame,
        expect,
    }
}

fn check(kernel: &mut Kernel, case: &Case) -> Result<Effect> {
    kernel.set(&case.setup)?;
    let in_kernel = kernel.judge(&case.frame)?;
    let pure = Pure::new(kernel.slot(), case.setup.clone(), clock::now()).judge(&case.frame);
    assert_eq!(
        in_kernel, pure,
        "{}: the kernel and the pure function",
        case.name
    );
    let (passed, counted, held) = match case.expect {
        Expect::Pass => (true, vec![], false),
        Expect::PassCounted(gate, counter) => (true, vec![(gate, counter)], false),
        Expect::Unparsed => (true, vec![(GateId::HOST, Counter::Unparsed)], false),
        Expect::Hold => (false, vec![(GATE, Counter::Held)], true),
        Expect::Drop(counter) => (false, vec![(GATE, counter)], false),
        Expect::Reply => (false, vec![(GATE, Counter::Rejected)], false),
    };
    assert_eq!(
        pure.action == Action::Pass,
        passed,
        "{}: {pure:?}",
        case.name
    );
    assert_eq!(pure.counted, counted, "{}", case.name);
    assert_eq!(pure.held.is_some(), held, "{}", case.name);
    let replied = matches!(pure.action, Action::Reply(_));
    assert_eq!(
        replied,
        matches!(case.expect, Expect::Reply),
        "{}",
        case.name
    );
    Ok(pure)
}

fn with(change: impl FnOnce(&mut Spec)) -> Vec<u8> {
    let mut spec = Spec::default();
    change(&mut spec);
    spec.build()
}

fn with_v6(change: impl FnOnce(&mut Spec)) -> Vec<u8> {
    let mut spec = Spec::v6();
    change(&mut spec);
    spec.build()
}

fn what_is_a_syn_and_what_is_not(slot: Slot) -> Result<()> {
    use extension as ext;
    let hold = || setup(Closed::Hold);
    let syn = || Spec::default().build();
    let header = options_header;
    let chain = |count: usize| vec![(ext::DESTINATION, header(8)); count];
    let cases = [
        case("plain v4", hold(), syn(), Expect::Hold),
        case("plain v6", hold(), Spec::v6().build(), Expect::Hold),
        case(
            "padded",
            hold(),
            with(|s| {
                s.tcp_options.clear();
                s.padded_to = 60;
            }),
            Expect::Hold,
        ),
        case(
            "one tag",
            hold(),
            with(|s| s.vlans = vec![(0x8100, 7)]),
            Expect::Hold,
        ),
        case(
            "q in q",
            hold(),
            with(|s| s.vlans = vec![(0x88a8, 7), (0x8100, 8)]),
            Expect::Hold,
        ),
        case(
            "two c-tags",
            hold(),
            with_v6(|s| s.vlans = vec![(0x8100, 7), (0x8100, 8)]),
            Expect::Hold,
        ),
        case(
            "three tags",
            hold(),
            with(|s| s.vlans = vec![(0x8100, 7); 3]),
            Expect::Pass,
        ),
        case(
            "ip options",
            hold(),
            with(|s| s.options = vec![1; 40]),
            Expect::Hold,
        ),
        case(
            "ecn",
            hold(),
            with(|s| s.flags |= flags::ECE | flags::CWR),
            Expect::Hold,
        ),
        case("psh", hold(), with(|s| s.flags |= flags::PSH), Expect::Hold),
        case(
            "syn-ack",
            hold(),
            with(|s| s.flags |= flags::ACK),
            Expect::Pass,
        ),
        case(
            "syn-fin",
            hold(),
            with(|s| s.flags |= flags::FIN),
            Expect::Pass,
        ),
        case(
            "syn-rst",
            hold(),
            with(|s| s.flags |= flags::RST),
            Expect::Pass,
        ),
        case(
            "data",
            hold(),
            with(|s| {
                s.flags = flags::ACK;
                s.payload = vec![7; 100];
            }),
            Expect::Pass,
        ),
        case("no flags", hold(), with(|s| s.flags = 0), Expect::Pass),
        case("udp", hold(), with(|s| s.protocol = 17), Expect::Pass),
        case(
            "first fragment",
            hold(),
            with(|s| s.fragment = 0x2000),
            Expect::Pass,
        ),
        case(
            "later fragment",
            hold(),
            with(|s| s.fragment = 3),
            Expect::Pass,
        ),
        case(
            "reserved ip flag",
            hold(),
            with(|s| s.fragment = 0xc000),
            Expect::Hold,
        ),
        case(
            "one extension",
            hold(),
            with_v6(|s| s.extensions = chain(1)),
            Expect::Hold,
        ),
        case(
            "hop by hop and long options",
            hold(),
            with_v6(|s| {
                s.extensions = vec![(ext::HOP_BY_HOP, header(8)), (ext::DESTINATION, header(64))];
            }),
            Expect::Hold,
        ),
        case(
            "six extensions",
            hold(),
            with_v6(|s| s.extensions = chain(6)),
            Expect::Hold,
        ),
        case(
            "seven extensions",
            hold(),
            with_v6(|s| s.extensions = chain(7)),
            Expect::Unparsed,
        ),
        case(
            "routing, done",
            hold(),
            with_v6(|s| s.extensions = vec![(ext::ROUTING, vec![0; 8])]),
            Expect::Hold,
        ),
        case(
            "routing, under way",
            hold(),
            with_v6(|s| s.extensions = vec![(ext::ROUTING, vec![0, 0, 4, 1, 0, 0, 0, 0])]),
            Expect::Pass,
        ),
        case(
            "authentication",
            hold(),
            with_v6(|s| s.extensions = vec![(ext::AUTH, [vec![0, 4], vec![0; 22]].concat())]),
            Expect::Hold,
        ),
        case(
            "atomic fragment",
            hold(),
            with_v6(|s| s.extensions = vec![(ext::FRAGMENT, vec![0; 8])]),
            Expect::Hold,
        ),
        case(
            "first fragment, v6",
            hold(),
            with_v6(|s| s.extensions = vec![(ext::FRAGMENT, vec![0, 0, 0, 1, 0, 0, 0, 0])]),
            Expect::Pass,
        ),
        case(
            "later fragment, v6",
            hold(),
            with_v6(|s| s.extensions = vec![(ext::FRAGMENT, vec![0, 0, 0, 8, 0, 0, 0, 0])]),
            Expect::Pass,
        ),
        case("esp", hold(), with_v6(|s| s.protocol = 50), Expect::Pass),
        case(
            "with data",
            hold(),
            with(|s| s.payload = b"GET /".to_vec()),
            Expect::Drop(Counter::Uncaptured),
        ),
        case(
            "too long to keep",
            hold(),
            with_v6(|s| {
                s.extensions = vec![(ext::DESTINATION, header(200))];
            }),
            Expect::Drop(Counter::Uncaptured),
        ),
        case(
            "arp",
            hold(),
            [vec![0xff; 12], vec![8, 6], vec![0; 46]].concat(),
            Expect::Pass,
        ),
        case(
            "ip header length 4",
            hold(),
            {
                let mut f = syn();
                f[14] = 0x44;
                f
            },
            Expect::Unparsed,
        ),
        case(
            "ip version 5",
            hold(),
            {
                let mut f = syn();
                f[14] = 0x55;
                f
            },
            Expect::Unparsed,
        ),
        case(
            "data offset 4",
            hold(),
            {
                let mut f = syn();
                f[46] = 0x40;
                f
            },
            Expect::Unparsed,
        ),
        case(
            "data offset past the end",
            hold(),
            {
                let mut f = syn();
                f[46] = 0xf0;
                f
            },
            Expect::Unparsed,
        ),
        case(
            "total length past the end",
            hold(),
            {
                let mut f = syn();
                f[17] = 0xff;
                f
            },
            Expect::Unparsed,
        ),
        case(
            "total length too short",
            hold(),
            {
                let mut f = syn();
                f[17] = 30;
                f
            },
            Expect::Unparsed,
        ),
    ];
    let mut kernel = Kernel::load(slot)?;
    for case in &cases {
        check(&mut kernel, case)?;
    }
    Ok(())
}

fn every_flag_byte(slot: Slot) -> Result<()> {
    let mut kernel = Kernel::load(slot)?;
    for bits in 0..=255 {
        let pure_syn = bits & 0x17 == 0x02;
        let expect = if pure_syn {
            Expect::Drop(Counter::Dropped)
        } else {
            Expect::Pass
        };
        let frame = with(|s| s.flags = bits);
        check(
            &mut kernel,
            &case("flags", setup(Closed::Drop), frame, expect),
        )?;
    }
    Ok(())
}

fn truncated_at_every_length(slot: Slot) -> Result<()> {
    let mut kernel = Kernel::load(slot)?;
    let specs = [
        Spec::default(),
        Spec {
            vlans: vec![(0x88a8, 1), (0x8100, 2)],
            options: vec![1; 8],
            ..Spec::default()
        },
        Spec {
            extensions: vec![(extension::DESTINATION, options_header(16)); 3],
            ..Spec::v6()
        },
    ];
    for spec in specs {
        let frame = spec.build();
        kernel.set(&setup(Closed::Hold))?;
        for len in 14..frame.len() {
            let cut = &frame[..len];
            if !kernel.takes(cut) {
                continue;
            }
            let in_kernel = kernel.judge(cut)?;
            let pure = Pure::new(slot, setup(Closed::Hold), clock::now()).judge(cut);
            assert_eq!(in_kernel, pure, "{len} of {} bytes", frame.len());
            assert_eq!(pure.action, Action::Pass, "{len} of {} bytes", frame.len());
        }
    }
    Ok(())
}

fn which_gate_and_which_mode(slot: Slot) -> Result<()> {
    let syn = || Spec::default().build();
    let attempt = AttemptKey {
        flow: FlowKey {
            endpoint: v4([10, 0, 0, 5], 8080),
            source: Address::from_v4([10, 0, 0, 1]),
            source_port: Port::new(40_000),
            zero: 0,
        },
        isn: Isn::from_octets([1, 2, 3, 4]),
    };
    let mut disarmed = setup(Closed::Reject);
    disarmed.armed = false;
    let mut expired = setup(Closed::Hold);
    expired.words = vec![(GATE, word(Closed::Hold, false))];
    let mut open = setup(Closed::Hold);
    open.words.clear();
    let mut wildcard = setup(Closed::Hold);
    wildcard.endpoints = vec![(any(8080), GATE)];
    let mut open_exact = wildcard.clone();
    open_exact.endpoints.push((v4([10, 0, 0, 5], 8080), OTHER));
    let mut exact_first = open_exact.clone();
    exact_first.endpoints = vec![(v4([10, 0, 0, 5], 8080), GATE), (any(8080), OTHER)];
    exact_first.words.push((OTHER, word(Closed::Reject, true)));
    let mut released = setup(Closed::Hold);
    released.released = vec![attempt];
    let mut other_attempt = released.clone();
    other_attempt.released[0].isn = Isn::from_octets([1, 2, 3, 5]);
    // A wildcard stands for the addresses of this host: nothing that goes out goes there.
    let (any_held, under_any) = match slot {
        Slot::Xdp | Slot::TcIngress => (Expect::Hold, Expect::Hold),
        Slot::TcEgress => (Expect::Pass, Expect::PassCounted(OTHER, Counter::Passed)),
    };
    let any_held = || match any_held {
        Expect::Hold => Expect::Hold,
        _ => Expect::Pass,
    };
    let mut checked = setup(Closed::Hold);
    checked.checks = vec![attempt.flow];
    let unflagged = checked.clone();
    checked.words = vec![(GATE, word(Closed::Hold, true).with_checks())];
    let mut other_check = checked.clone();
    other_check.checks[0].source_port = Port::new(40_001);
    let other_address = with(|s| s.destination = "10.0.0.6".parse().expect("an address"));

    let cases = [
        case("disarmed", disarmed, syn(), Expect::Pass),
        case(
            "drop",
            setup(Closed::Drop),
            syn(),
            Expect::Drop(Counter::Dropped),
        ),
        case(
            "expired",
            expired,
            syn(),
            Expect::PassCounted(GATE, Counter::Expired),
        ),
        case(
            "open",
            open,
            syn(),
            Expect::PassCounted(GATE, Counter::Passed),
        ),
        case(
            "wildcard v4",
            wildcard.clone(),
            to_this_host(syn()),
            any_held(),
        ),
        case(
            "wildcard v6",
            wildcard.clone(),
            to_this_host(Spec::v6().build()),
            any_held(),
        ),
        case(
            "wildcard, another host's frame",
            wildcard.clone(),
            syn(),
            match slot {
                // It comes before the kernel has looked at the frame's address.
                Slot::Xdp => Expect::Hold,
                Slot::TcIngress | Slot::TcEgress => Expect::Pass,
            },
        ),
        case(
            "wildcard, other port",
            wildcard,
            with(|s| s.destination_port = 8081),
            Expect::Pass,
        ),
        case(
            "open exact under a closed wildcard",
            open_exact,
            to_this_host(syn()),
            under_any,
        ),
        case(
            "closed exact before a closed wildcard",
            exact_first,
            syn(),
            Expect::Hold,
        ),
        case(
            "other address",
            setup(Closed::Hold),
            other_address,
            Expect::Pass,
        ),
        case(
            "other port",
            setup(Closed::Hold),
            with(|s| s.destination_port = 80),
            Expect::Pass,
        ),
        case(
            "source port is no endpoint",
            setup(Closed::Hold),
            with(|s| {
                s.source_port = 8080;
                s.destination_port = 40_000;
            }),
            Expect::Pass,
        ),
        case(
            "released",
            released,
            syn(),
            Expect::PassCounted(GATE, Counter::Replayed),
        ),
        case(
            "a health check of the gate's own",
            checked,
            syn(),
            Expect::PassCounted(GATE, Counter::Checked),
        ),
        case(
            "a health check where the word doesn't let it pass",
            unflagged,
            syn(),
            Expect::Hold,
        ),
        case("another's health check", other_check, syn(), Expect::Hold),
        case(
            "another attempt was released",
            other_attempt,
            syn(),
            Expect::Hold,
        ),
    ];
    let mut kernel = Kernel::load(slot)?;
    for case in &cases {
        check(&mut kernel, case)?;
    }
    Ok(())
}

/// The TCP checksum, the header's if there is one, and the addresses of a reply are right, and it
/// acknowledges the SYN with all its data.
fn a_reset_is_correct(slot: Slot) -> Result<()> {
    let mut kernel = Kernel::load(slot)?;
    let specs = [
        Spec::default(),
        Spec::v6(),
        Spec {
            tcp_options: vec![],
            padded_to: 60,
            ..Spec::default()
        },
        Spec {
            isn: u32::MAX,
            payload: vec![1; 9],
            options: vec![1; 12],
            ..Spec::default()
        },
        Spec {
            vlans: vec![(0x8100, 5)],
            checksum: Checksum::Partial,
            ..Spec::v6()
        },
        Spec {
            extensions: vec![(extension::DESTINATION, options_header(24))],
            ..Spec::v6()
        },
        Spec {
            vlans: vec![(0x88a8, 5), (0x8100, 6)],
            ..Spec::default()
        },
    ];
    for spec in specs {
        let frame = spec.build();
        let effect = check(
            &mut kernel,
            &case("reset", setup(Closed::Reject), frame.clone(), Expect::Reply),
        )?;
        let Action::Reply(reply) = effect.action else {
            panic!("{spec:?}: no reply");
        };
        assert_eq!(reply[..6], frame[6..12], "to whom it came from");
        assert_eq!(reply[6..12], frame[..6]);
        let Frame::Tcp(at) = locate(reply.as_slice()) else {
            panic!("{spec:?}: no TCP");
        };
        assert_eq!(at.flags, flags::RST | flags::ACK);
        let answer = at.syn(reply.as_slice()).expect("consistent lengths");
        let flow = answer.attempt.flow;
        assert_eq!(flow.endpoint.port.number(), spec.source_port);
        assert_eq!(flow.source_port.number(), spec.destination_port);
        assert_eq!(answer.attempt.isn.number(), 0, "sequence number");
        let number =
            |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().expect("four bytes"));
        let expected = spec.isn.wrapping_add(1 + spec.payload.len() as u32);
        assert_eq!(number(at.transport + 8), expected, "acknowledgment");
        let partial = slot != Slot::Xdp && matches!(spec.checksum, Checksum::Partial);
        assert_right_checksums(&reply[..answer.end], &at, partial);
    }
    Ok(())
}

fn assert_right_checksums(packet: &[u8], at: &Located, partial: bool) {
    use gate_common::checksum::{Found, add, complete, fold};
    let expected = match partial {
        true => Found::Completed,
        false => Found::Whole,
    };
    assert_eq!(complete(&mut packet.to_vec(), at), Ok(expected));
    if at.family == Family::V4 {
        assert_eq!(fold(add(0, &packet[at.network..at.network + 20])), 0xffff);
    }
}

fn a_retransmission_replaces_the_frame_and_keeps_the_time(slot: Slot) -> Result<()> {
    let mut kernel = Kernel::load(slot)?;
    kernel.set(&setup(Closed::Hold))?;
    let mut spec = Spec::default();
    kernel.judge(&spec.build())?;
    let first = kernel.held()?[0].1;
    spec.tcp_options[11] = 99;
    let again = kernel.judge(&spec.build())?;
    assert_eq!(again.counted, [(GATE, Counter::Refreshed)]);
    assert_eq!(again.held, Some(spec.build()));
    let second = kernel.held()?[0].1;
    assert_eq!(second.arrived, first.arrived);
    assert!(second.refreshed > first.refreshed);
    // The same 4-tuple with another ISN is another connection.
    spec.isn += 1;
    let reused = kernel.judge(&spec.build())?;
    assert_eq!(reused.counted, [(GATE, Counter::Held)]);
    assert!(kernel.held()?[0].1.arrived > first.arrived);
    assert_eq!(kernel.held()?.len(), 1);
    Ok(())
}

fn a_full_table_drops_and_counts(slot: Slot) -> Result<()> {
    let mut kernel = Kernel::load_with(slot, 4)?;
    kernel.set(&setup(Closed::Hold))?;
    let mut overflowed = 0;
    for port in 1..=64 {
        let effect = kernel.judge(&with(|s| s.source_port = port))?;
        assert_eq!(effect.action, Action::Drop);
        overflowed += usize::from(effect.counted == [(GATE, Counter::Overflowed)]);
    }
    let held = kernel.held()?.len();
    assert_eq!(held + overflowed, 64);
    // The kernel keeps a few spare entries for each CPU.
    assert!((4..32).contains(&held), "{held}");
    Ok(())
}

fn a_retransmission_after_the_lease_is_not_followed_by_the_held_copy(slot: Slot) -> Result<()> {
    let mut kernel = Kernel::load(slot)?;
    let mut setup = setup(Closed::Hold);
    let mut pure = Pure::new(slot, setup.clone(), clock::now());
    kernel.set(&setup)?;
    let frame = Spec::default().build();
    assert_eq!(kernel.judge(&frame)?, pure.judge(&frame));
    setup.words = vec![(GATE, word(Closed::Hold, false))];
    kernel.set_words(&setup)?;
    assert_eq!(kernel.judge(&frame)?.counted, [(GATE, Counter::Expired)]);
    assert_eq!(kernel.released()?.len(), 1);
    // One that was never held leaves nothing.
    let other = with(|s| s.source_port = 1);
    assert_eq!(kernel.judge(&other)?.counted, [(GATE, Counter::Expired)]);
    assert_eq!(kernel.released()?.len(), 1);
    // Nor does another connection from the same port.
    let reused = with(|s| s.isn += 1);
    assert_eq!(kernel.judge(&reused)?.counted, [(GATE, Counter::Expired)]);
    assert_eq!(kernel.released()?.len(), 1);
    Ok(())
}

/// No SYN is dropped later than 10 ms after the lease, and none passes before it ends. The times are
/// taken on the side of the call where a busy machine can't make them wrong.
fn a_lease_ends_on_time(slot: Slot) -> Result<()> {
    let mut kernel = Kernel::load(slot)?;
    let frame = Spec::default().build();
    for _ in 0..5 {
        let deadline = clock::after(clock::now(), Duration::from_millis(30));
        let mut setup = setup(Closed::Drop);
        setup.words = vec![(GATE, StateWord::closed(Closed::Drop, deadline))];
        kernel.set(&setup)?;
        loop {
            let before = clock::now();
            let passed = kernel.judge(&frame)?.action == Action::Pass;
            if passed {
                assert!(clock::now() >= deadline);
                break;
            }
            assert!(clock::between(deadline, before) < Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Mutated and random frames: the kernel and the pure function must agree on all of them.
fn any_frame_is_judged_alike(slot: Slot) -> Result<()> {
    const FRAMES: u64 = 40_000;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut kernel = Kernel::load(slot)?;
    let bases: Vec<Vec<u8>> = [
        Spec::default(),
        Spec::v6(),
        Spec {
            vlans: vec![(0x8100, 5)],
            options: vec![1; 4],
            ..Spec::default()
        },
        Spec {
            vlans: vec![(0x88a8, 5), (0x8100, 6)],
            ..Spec::v6()
        },
        Spec {
            extensions: vec![
                (extension::HOP_BY_HOP, options_header(8)),
                (extension::ROUTING, vec![0; 8]),
                (extension::FRAGMENT, vec![0; 8]),
                (extension::AUTH, [vec![0, 1], vec![0; 10]].concat()),
                (extension::DESTINATION, options_header(16)),
            ],
            ..Spec::v6()
        },
    ]
    .iter()
    .map(Spec::build)
    .collect();
    for mode in [Closed::Hold, Closed::Drop, Closed::Reject] {
        let setup = setup(mode);
        kernel.set(&setup)?;
        let mut pure = Pure::new(slot, setup, clock::now());
        for index in 0..FRAMES / 3 {
            let mut frame = bases[random.below(bases.len())].clone();
            for _ in 0..random.below(5) {
                let at = random.below(frame.len());
                frame[at] = match random.below(3) {
                    0 => random.next() as u8,
                    1 => frame[at] ^ 1 << random.below(8),
                    _ => [0, 1, 4, 5, 6, 17, 43, 44, 51, 60, 0x45, 0x60, 0xff][random.below(13)],
                };
            }
            if random.below(8) == 0 {
                frame.truncate(14 + random.below(frame.len() - 13));
            }
            if !kernel.takes(&frame) {
                continue;
            }
            let in_kernel = kernel.judge(&frame)?;
            assert_eq!(
                in_kernel,
                pure.judge(&frame),
                "{mode:?} {index}: {frame:02x?}"
            );
        }
    }
    Ok(())
}

/// Xorshift64: the same frames in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
