//! Frames that the pure function and the kernel must judge alike: the action, the frame that is
//! sent back or held, and which counters moved (all others must stand still).

use std::time::Duration;

use anyhow::Result;
use gate_common::abi::{Counter, Guard, Missing};
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
        ..Setup::default()
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
    who_is_let_through,
    who_is_guarded,
    a_guard_goes_through_an_outage,
    a_full_table_of_missing_listeners_passes,
    any_frame_is_judged_alike,
    any_frame_is_guarded_alike,
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

/// Sources that pass a closed gate: of their own family, of their own gate, and only where the word
/// says so.
fn who_is_let_through(slot: Slot) -> Result<()> {
    let allow = |sources: &[(GateId, &str)]| {
        let mut setup = setup(Closed::Hold);
        setup.words = vec![
            (GATE, word(Closed::Hold, true).with_allows()),
            (OTHER, word(Closed::Hold, true).with_allows()),
        ];
        let parsed = sources.iter().map(|(gate, text)| (*gate, text.parse()));
        setup.allowed = parsed
            .map(|(gate, cidr)| (gate, cidr.expect("a prefix")))
            .collect();
        setup
    };
    let v4 = || Spec::default().build();
    let v6 = || Spec::v6().build();
    let allowed = || Expect::PassCounted(GATE, Counter::Allowed);
    let mut unflagged = allow(&[(GATE, "10.0.0.0/8")]);
    unflagged.words = vec![(GATE, word(Closed::Hold, true))];
    let mut rejecting = allow(&[(GATE, "10.0.0.0/8")]);
    rejecting.words = vec![(GATE, word(Closed::Reject, true).with_allows())];
    let cases = [
        case(
            "its own prefix",
            allow(&[(GATE, "10.0.0.0/24")]),
            v4(),
            allowed(),
        ),
        case("one address", allow(&[(GATE, "10.0.0.1")]), v4(), allowed()),
        case(
            "the next address",
            allow(&[(GATE, "10.0.0.2")]),
            v4(),
            Expect::Hold,
        ),
        case(
            "a neighbour's prefix",
            allow(&[(GATE, "10.0.1.0/24")]),
            v4(),
            Expect::Hold,
        ),
        case(
            "every v4 source",
            allow(&[(GATE, "0.0.0.0/0")]),
            v4(),
            allowed(),
        ),
        case(
            "v6, where v4 is allowed",
            allow(&[(GATE, "0.0.0.0/0")]),
            v6(),
            Expect::Hold,
        ),
        case(
            "its own v6 prefix",
            allow(&[(GATE, "fd00::/8")]),
            v6(),
            allowed(),
        ),
        case(
            "one v6 address",
            allow(&[(GATE, "fd00::1")]),
            v6(),
            allowed(),
        ),
        case(
            "the next v6 address",
            allow(&[(GATE, "fd00::2")]),
            v6(),
            Expect::Hold,
        ),
        case("every v6 source", allow(&[(GATE, "::/0")]), v6(), allowed()),
        case(
            "v4, where v6 is allowed",
            allow(&[(GATE, "::/0")]),
            v4(),
            Expect::Hold,
        ),
        case(
            "v4, where v6 and another prefix is allowed",
            allow(&[(GATE, "::/0"), (GATE, "10.0.0.1")]),
            v4(),
            allowed(),
        ),
        case(
            "every source",
            allow(&[(GATE, "::/0"), (GATE, "0.0.0.0/0")]),
            v4(),
            allowed(),
        ),
        case(
            "another gate's prefix",
            allow(&[(OTHER, "10.0.0.0/8")]),
            v4(),
            Expect::Hold,
        ),
        case(
            "another gate's every source",
            allow(&[(OTHER, "::/0")]),
            v6(),
            Expect::Hold,
        ),
        case(
            "where the word doesn't say so",
            unflagged,
            v4(),
            Expect::Hold,
        ),
        case("a gate that rejects", rejecting, v4(), allowed()),
    ];
    let mut kernel = Kernel::load(slot)?;
    for case in &cases {
        check(&mut kernel, case)?;
    }
    Ok(())
}

/// How long the guards of these tests hold.
const GUARD: Duration = Duration::from_secs(3600);

/// An open and guarded gate for both endpoints, with sockets that listen there.
fn guarded(listening: &[&str]) -> Setup {
    let lease = GUARD.as_nanos() as u64;
    Setup {
        words: vec![(GATE, StateWord::OPEN.guarded(true))],
        guards: vec![(GATE, Guard { lease, dirty: 0 })],
        listening: listening
            .iter()
            .map(|address| address.parse().expect("an address"))
            .collect(),
        ..setup(Closed::Hold)
    }
}

/// A listener that is missing since then.
fn missing_since(since: BootTime) -> Missing {
    Missing {
        since: since.0,
        gate: GATE,
        zero: 0,
    }
}

/// What is expected where nothing listens: egress never guards.
fn hold_at(slot: Slot) -> Expect {
    match slot {
        Slot::Xdp | Slot::TcIngress => Expect::Hold,
        Slot::TcEgress => Expect::PassCounted(GATE, Counter::Passed),
    }
}

fn who_is_guarded(slot: Slot) -> Result<()> {
    let v4 = || to_this_host(Spec::default().build());
    let v6 = || to_this_host(Spec::v6().build());
    let passed = || Expect::PassCounted(GATE, Counter::Passed);
    let over = || match slot {
        Slot::TcEgress => passed(),
        Slot::Xdp | Slot::TcIngress => Expect::PassCounted(GATE, Counter::Expired),
    };
    let dropped = |counter| match slot {
        Slot::TcEgress => passed(),
        Slot::Xdp | Slot::TcIngress => Expect::Drop(counter),
    };
    let any_of = |address: &str| {
        let mut setup = guarded(&[]);
        if !address.is_empty() {
            setup.listening = vec![address.parse().expect("an address")];
        }
        setup.endpoints = vec![(any(8080), GATE)];
        setup
    };
    // A wildcard stands for no address that is gone to.
    let any_held = || match slot {
        Slot::TcEgress => passed(),
        Slot::Xdp | Slot::TcIngress => Expect::Hold,
    };
    let missing = |address: [u8; 4], lease: u64, since: BootTime| {
        let mut setup = guarded(&[]);
        setup.guards = vec![(GATE, Guard { lease, dirty: 1 })];
        setup.missing = vec![(self::v4(address, 8080), missing_since(since))];
        setup
    };
    let now = clock::now();
    let long_ago = BootTime(now.0 / 2);
    let with_missing = missing([10, 0, 0, 5], GUARD.as_nanos() as u64, now);
    let at_an_end = missing([10, 0, 0, 5], 1, long_ago);
    let elsewhere = missing([10, 0, 0, 6], 1, long_ago);
    let mut closed = guarded(&["10.0.0.5:8080"]);
    closed.words = vec![(GATE, word(Closed::Drop, true).guarded(true))];
    let mut lease_over = guarded(&[]);
    lease_over.words = vec![(GATE, word(Closed::Drop, false).guarded(true))];
    let mut lease_over_and_back = lease_over.clone();
    lease_over_and_back.listening = guarded(&["10.0.0.5:8080"]).listening;
    let mut under_any = any_of("");
    under_any
        .endpoints
        .push((self::v4([10, 0, 0, 5], 8080), OTHER));
    let mut released = guarded(&[]);
    released.released = vec![AttemptKey {
        flow: FlowKey {
            endpoint: self::v4([10, 0, 0, 5], 8080),
            source: Address::from_v4([10, 0, 0, 1]),
            source_port: Port::new(40_000),
            zero: 0,
        },
        isn: Isn::from_octets([1, 2, 3, 4]),
    }];
    let cases = [
        case("a listener", guarded(&["10.0.0.5:8080"]), v4(), passed()),
        case(
            "a listener at any address",
            guarded(&["0.0.0.0:8080"]),
            v4(),
            passed(),
        ),
        case(
            "a dual-stack listener",
            guarded(&["[::]:8080"]),
            v4(),
            passed(),
        ),
        case(
            "a v6 listener",
            guarded(&["[fd00::5]:8080"]),
            v6(),
            passed(),
        ),
        case(
            "a dual-stack listener, v6",
            guarded(&["[::]:8080"]),
            v6(),
            passed(),
        ),
        case("no listener", guarded(&[]), v4(), hold_at(slot)),
        case("no listener, v6", guarded(&[]), v6(), hold_at(slot)),
        case(
            "another address's listener",
            guarded(&["10.0.0.6:8080"]),
            v4(),
            hold_at(slot),
        ),
        case(
            "another port's listener",
            guarded(&["10.0.0.5:8081"]),
            v4(),
            hold_at(slot),
        ),
        case(
            "a v4 listener for v6",
            guarded(&["0.0.0.0:8080"]),
            v6(),
            hold_at(slot),
        ),
        case(
            "not for this host",
            guarded(&[]),
            Spec::default().build(),
            // It comes before the kernel has looked at the frame's address.
            match slot {
                Slot::Xdp => Expect::Hold,
                Slot::TcIngress | Slot::TcEgress => passed(),
            },
        ),
        case("missing for a while", with_missing, v4(), hold_at(slot)),
        case("missing for longer than the lease", at_an_end, v4(), over()),
        case(
            "another address missing for long",
            elsewhere,
            v4(),
            hold_at(slot),
        ),
        case("a wildcard, no listener", any_of(""), v4(), any_held()),
        case("a wildcard, no listener, v6", any_of(""), v6(), any_held()),
        case("a wildcard's listener", any_of("[::]:8080"), v4(), passed()),
        case(
            "closed, though a socket listens",
            closed,
            v4(),
            Expect::Drop(Counter::Dropped),
        ),
        case(
            "guarded when the lease of a close is over",
            lease_over,
            v4(),
            match slot {
                Slot::TcEgress => Expect::PassCounted(GATE, Counter::Expired),
                Slot::Xdp | Slot::TcIngress => Expect::Hold,
            },
        ),
        case(
            "listening when the lease of a close is over",
            lease_over_and_back,
            v4(),
            match slot {
                Slot::TcEgress => Expect::PassCounted(GATE, Counter::Expired),
                Slot::Xdp | Slot::TcIngress => passed(),
            },
        ),
        case(
            "an open gate under a guarded wildcard",
            under_any,
            v4(),
            match slot {
                Slot::TcEgress => Expect::PassCounted(OTHER, Counter::Passed),
                Slot::Xdp | Slot::TcIngress => Expect::Hold,
            },
        ),
        case(
            "released, and gone again",
            released,
            v4(),
            dropped(Counter::Dropped),
        ),
        case(
            "with data",
            guarded(&[]),
            to_this_host(with(|s| s.payload = b"GET /".to_vec())),
            dropped(Counter::Uncaptured),
        ),
    ];
    let mut kernel = Kernel::load(slot)?;
    for case in cases {
        // What goes out never meets a wildcard.
        let expect = match (slot, case.name.starts_with("a wildcard")) {
            (Slot::TcEgress, true) => Expect::Pass,
            _ => case.expect,
        };
        check(&mut kernel, &Case { expect, ..case })?;
    }
    Ok(())
}

/// Up, down, up again: what passes is held no more and never injected, and the next outage begins
/// anew.
fn a_guard_goes_through_an_outage(slot: Slot) -> Result<()> {
    if slot == Slot::TcEgress {
        // It never guards, as `who_is_guarded` shows.
        return Ok(());
    }
    let mut kernel = Kernel::load(slot)?;
    let setup = guarded(&["10.0.0.5:8080"]);
    kernel.set(&setup)?;
    let mut pure = Pure::new(slot, setup.clone(), clock::now());
    let mut judge = |kernel: &mut Kernel, up: bool, port: u16| -> Result<Effect> {
        let listening = if up { &setup.listening[..] } else { &[] };
        kernel.listen(listening)?;
        pure.listen(listening);
        let frame = to_this_host(with(|s| s.source_port = port));
        let in_kernel = kernel.judge(&frame)?;
        assert_eq!(in_kernel, pure.judge(&frame));
        Ok(in_kernel)
    };
    judge(&mut kernel, true, 1)?;
    assert_eq!(kernel.guard(GATE)?.dirty, 0, "nothing was missing yet");
    for port in 1..=3 {
        let down = judge(&mut kernel, false, port)?;
        assert_eq!(down.counted, [(GATE, Counter::Held)]);
        assert!(down.missing);
        assert_ne!(kernel.guard(GATE)?.dirty, 0);
        let again = judge(&mut kernel, false, port)?;
        assert_eq!(again.counted, [(GATE, Counter::Refreshed)]);
        judge(&mut kernel, false, 100 + port)?;
        let back = judge(&mut kernel, true, port)?;
        assert_eq!(back.counted, [(GATE, Counter::Passed)]);
        assert!(back.held.is_none() && !back.missing, "{back:?}");
        assert_eq!(
            kernel.released()?.len(),
            usize::from(port),
            "no copy may follow"
        );
        assert_eq!(
            kernel.held()?.len(),
            usize::from(port),
            "the others still wait"
        );
        // It comes again while nobody has cleared up: the attempt was injected, as far as is known.
        let gone = judge(&mut kernel, false, port)?;
        assert_eq!(gone.counted, [(GATE, Counter::Dropped)]);
        assert!(gone.missing && gone.held.is_none(), "{gone:?}");
    }
    Ok(())
}

/// Without a note of when it began, a lease would never end.
fn a_full_table_of_missing_listeners_passes(slot: Slot) -> Result<()> {
    const ROOM: u32 = 4;
    if slot == Slot::TcEgress {
        // It never guards, as `who_is_guarded` shows.
        return Ok(());
    }
    let mut kernel = Kernel::load_sized(slot, &[("MISSING", ROOM)])?;
    let mut setup = guarded(&[]);
    setup.endpoints = vec![(any(8080), GATE)];
    kernel.set(&setup)?;
    let mut held = 0;
    for last in 0..=63 {
        let effect = kernel.judge(&to_this_host(with(|s| {
            s.destination = std::net::Ipv4Addr::new(10, 0, 0, last).into();
        })))?;
        assert_eq!(effect.action == Action::Drop, effect.missing);
        if effect.missing {
            held += 1;
        } else {
            assert_eq!(effect.counted, [(GATE, Counter::Passed)]);
        }
    }
    assert_eq!(held, ROOM);
    Ok(())
}

/// Mutated frames for a guarded gate, with listeners for some of them that come and go.
fn any_frame_is_guarded_alike(slot: Slot) -> Result<()> {
    const FRAMES: usize = 12_000;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut kernel = Kernel::load(slot)?;
    let bases: Vec<Vec<u8>> = shapes().into_iter().map(to_this_host).collect();
    let mut setup = guarded(&["10.0.0.5:8080", "[fd00::5]:8080"]);
    setup.allowed = vec![
        (GATE, "10.0.0.0/30".parse()?),
        (GATE, "fd00::/126".parse()?),
    ];
    let all = setup.listening.clone();
    kernel.set(&setup)?;
    let mut pure = Pure::new(slot, setup, clock::now());
    for index in 0..FRAMES {
        if index % 100 == 0 {
            let listening: Vec<_> = all
                .iter()
                .filter(|_| random.below(2) == 0)
                .copied()
                .collect();
            kernel.listen(&listening)?;
            pure.listen(&listening);
        }
        let frame = to_this_host(random.mutated(&bases));
        if !kernel.takes(&frame) {
            continue;
        }
        let in_kernel = kernel.judge(&frame)?;
        assert_eq!(in_kernel, pure.judge(&frame), "{index}: {frame:02x?}");
    }
    Ok(())
}

/// Frames of all shapes, to be mutated.
fn shapes() -> Vec<Vec<u8>> {
    [
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
    .collect()
}

/// Mutated and random frames: the kernel and the pure function must agree on all of them.
fn any_frame_is_judged_alike(slot: Slot) -> Result<()> {
    const FRAMES: u64 = 40_000;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut kernel = Kernel::load(slot)?;
    let bases = shapes();
    for mode in [Closed::Hold, Closed::Drop, Closed::Reject] {
        let setup = setup(mode);
        kernel.set(&setup)?;
        let mut pure = Pure::new(slot, setup, clock::now());
        for index in 0..FRAMES / 3 {
            let frame = random.mutated(&bases);
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

    fn mutated(&mut self, bases: &[Vec<u8>]) -> Vec<u8> {
        let mut frame = bases[self.below(bases.len())].clone();
        for _ in 0..self.below(5) {
            let at = self.below(frame.len());
            frame[at] = match self.below(3) {
                0 => self.next() as u8,
                1 => frame[at] ^ 1 << self.below(8),
                _ => [0, 1, 4, 5, 6, 17, 43, 44, 51, 60, 0x45, 0x60, 0xff][self.below(13)],
            };
        }
        if self.below(8) == 0 {
            frame.truncate(14 + self.below(frame.len() - 13));
        }
        frame
    }
}
