//! Frames of every kind that isn't a plain SYN for this host: each hook's program and the pure
//! function agree, and do what is said here. Needs root.

use gate_common::abi::{Counter, Guard};
use gate_common::state::{Closed, StateWord};
use gate_tests::cases::{
    DROPPED, Expect, GATE, PASSES, SLOTS, UNPARSED, any, case, check, check_all, dropping, setup,
    to_this_host, v4, with, with_v6, word,
};
use gate_tests::differ::Expected;
use gate_tests::extent::Extent;
use gate_tests::kernel::{Action, Kernel};
use gate_tests::packet::{Checksum, Spec, extension, flags};
use gate_userspace::hooks::Slot;

#[test]
fn of_the_256_flag_bytes_only_those_of_a_pure_syn_are_judged_on_each_hook_in_each_mode() {
    let mut guarded = setup(Closed::Hold);
    guarded.words = vec![(GATE, StateWord::OPEN.guarded(true))];
    guarded.guards = vec![(
        GATE,
        Guard {
            lease: u64::MAX,
            dirty: 0,
        },
    )];
    let mut expired = setup(Closed::Hold);
    expired.words = vec![(GATE, word(Closed::Hold, false))];
    let mut open = setup(Closed::Hold);
    open.words = vec![(GATE, StateWord::OPEN)];
    for slot in SLOTS {
        let held = (Action::Drop, Some((GATE, Counter::Held)));
        let counted = |counter| (Action::Pass, Some((GATE, counter)));
        let by_guard = match slot {
            Slot::Xdp | Slot::TcIngress => held.clone(),
            Slot::TcEgress => counted(Counter::Passed),
        };
        let modes = [
            (setup(Closed::Hold), held),
            (dropping(), DROPPED),
            (guarded.clone(), by_guard),
            (expired.clone(), counted(Counter::Expired)),
            (open.clone(), counted(Counter::Passed)),
        ];
        for (tables, of_a_syn) in modes {
            let of = |bits| {
                if is_pure(bits) {
                    of_a_syn.clone()
                } else {
                    PASSES
                }
            };
            let cases: Vec<_> = every_flag_byte()
                .map(|(bits, frame)| (frame, of(bits)))
                .collect();
            check_all(slot, &tables, &cases).unwrap();
        }
        let mut kernel = Kernel::load(slot).unwrap();
        for (bits, frame) in every_flag_byte() {
            let expect = if is_pure(bits) {
                Expect::Reply
            } else {
                Expect::Pass
            };
            check(
                &mut kernel,
                &case("flags", setup(Closed::Reject), frame, expect),
            )
            .unwrap();
        }
    }
}

fn is_pure(bits: u8) -> bool {
    bits & (flags::SYN | flags::ACK | flags::RST | flags::FIN) == flags::SYN
}

/// A frame of each family and each flag byte, and each another flow.
fn every_flag_byte() -> impl Iterator<Item = (u8, Vec<u8>)> {
    [Spec::default(), Spec::v6()].into_iter().flat_map(|spec| {
        (0..=255).map(move |flags| {
            let source_port = 1000 + u16::from(flags);
            let spec = Spec {
                flags,
                source_port,
                ..spec.clone()
            };
            (flags, to_this_host(spec.build()))
        })
    })
}

/// One extension header of each kind, as short as it can be and as it is passed by.
const HEADERS: [(u8, [u8; 8]); 5] = [
    (extension::HOP_BY_HOP, [0, 0, 1, 4, 0, 0, 0, 0]),
    (extension::ROUTING, [0; 8]),
    (extension::FRAGMENT, [0; 8]),
    (extension::AUTH, [0; 8]),
    (extension::DESTINATION, [0, 0, 1, 4, 0, 0, 0, 0]),
];

/// A SYN behind these, and what becomes of it at a gate that drops.
fn behind(extensions: Vec<(u8, Vec<u8>)>) -> (Vec<u8>, Expected) {
    let expected = if extensions.len() <= 6 {
        DROPPED
    } else {
        UNPARSED
    };
    let base = Spec::v6();
    (Spec { extensions, ..base }.build(), expected)
}

#[test]
fn extension_headers_in_every_order_are_looked_behind_up_to_six_and_no_further() {
    let longest = Extent::wanted().pick(5, 7);
    let mut cases = Vec::new();
    for count in 0..=longest {
        for mut order in 0..HEADERS.len().pow(count) {
            let chain = (0..count).map(|_| {
                let (kind, bytes) = HEADERS[order % HEADERS.len()];
                order /= HEADERS.len();
                (kind, bytes.to_vec())
            });
            cases.push(behind(chain.collect()));
        }
    }
    // Further ones, all of one kind, also behind the longest chain.
    for count in 6..=20 {
        for (kind, bytes) in HEADERS {
            cases.push(behind(vec![(kind, bytes.to_vec()); count]));
        }
    }
    for slot in SLOTS {
        check_all(slot, &dropping(), &cases).unwrap();
    }
}

#[test]
fn an_extension_header_of_any_length_is_looked_behind_and_kept_as_long_as_there_is_room() {
    for slot in SLOTS {
        let mut kernel = Kernel::load(slot).unwrap();
        for len in (8..=400).step_by(8) {
            let mut header = vec![0; len];
            header[1] = (len / 8 - 1) as u8;
            let frame = with_v6(|s| s.extensions = vec![(extension::DESTINATION, header)]);
            // 94 bytes beside it, of 252 that are kept.
            let expect = match frame.len() {
                ..=252 => Expect::Hold,
                _ => Expect::Drop(Counter::Uncaptured),
            };
            check(
                &mut kernel,
                &case("long", setup(Closed::Hold), frame, expect),
            )
            .unwrap();
        }
    }
}

#[test]
fn a_fragment_passes_whether_it_is_the_first_a_later_one_or_the_last() {
    let mut cases = Vec::new();
    for bits in 0..=0xffff_u16 {
        // More fragments, or an offset; "don't fragment" and the reserved bit don't matter.
        let is_fragment = bits & 0x3fff != 0;
        let expected = if is_fragment { PASSES } else { DROPPED };
        // All patterns of one bit or two, and all of the upper byte.
        if bits.count_ones() <= 2 || bits & 0xff == 0 {
            cases.push((with(|s| s.fragment = bits), expected.clone()));
        }
        let is_fragment = bits & 0xfff9 != 0;
        if bits.count_ones() <= 2 || bits & 0xff == 0 {
            let [high, low] = bits.to_be_bytes();
            let header = vec![0, 0, high, low, 0, 0, 0, 7];
            let expected = if is_fragment { PASSES } else { DROPPED };
            let frame = with_v6(|s| s.extensions = vec![(extension::FRAGMENT, header)]);
            cases.push((frame, expected));
        }
    }
    for slot in SLOTS {
        check_all(slot, &dropping(), &cases).unwrap();
    }
}

#[test]
fn a_checksum_that_is_whole_partial_or_wrong_is_held_as_it_came() {
    for checksum in [Checksum::Whole, Checksum::Partial, Checksum::Wrong] {
        for frame in [
            with(|s| s.checksum = checksum),
            with_v6(|s| s.checksum = checksum),
        ] {
            for slot in SLOTS {
                let mut kernel = Kernel::load(slot).unwrap();
                let one = case("checksum", setup(Closed::Hold), frame.clone(), Expect::Hold);
                let effect = check(&mut kernel, &one).unwrap();
                assert_eq!(effect.held.as_ref(), Some(&frame), "{checksum:?}");
            }
        }
    }
}

#[test]
fn a_frame_for_another_station_is_judged_by_its_endpoint_and_not_by_a_wildcard_that_stands_for_this_host()
 {
    let to = |station: [u8; 6]| {
        let mut frame = Spec::default().build();
        frame[..6].copy_from_slice(&station);
        frame
    };
    let mut wildcard = setup(Closed::Hold);
    wildcard.endpoints = vec![(any(8080), GATE)];
    let mut exact = setup(Closed::Hold);
    exact.endpoints = vec![(v4([10, 0, 0, 5], 8080), GATE)];
    for slot in SLOTS {
        let mut kernel = Kernel::load(slot).unwrap();
        let own = match slot {
            Slot::Xdp | Slot::TcIngress => Expect::Hold,
            // Nothing that goes out goes to this host.
            Slot::TcEgress => Expect::Pass,
        };
        let another = match slot {
            // It comes before the kernel has looked at the address.
            Slot::Xdp => Expect::Hold,
            Slot::TcIngress | Slot::TcEgress => Expect::Pass,
        };
        for (station, by_wildcard) in [([0; 6], own), ([2, 0, 0, 0, 0, 9], another)] {
            let one = case("wildcard", wildcard.clone(), to(station), by_wildcard);
            check(&mut kernel, &one).unwrap();
            let one = case("exact", exact.clone(), to(station), Expect::Hold);
            check(&mut kernel, &one).unwrap();
        }
    }
}

#[test]
fn a_frame_to_all_or_to_a_group_passes_in_every_mode_and_is_never_answered() {
    for mode in [Closed::Hold, Closed::Drop, Closed::Reject] {
        let mut tables = setup(mode);
        tables.endpoints.push((any(8080), GATE));
        for slot in SLOTS {
            let mut kernel = Kernel::load(slot).unwrap();
            for station in [
                [0xff; 6],
                [0x01, 0, 0x5e, 0, 0, 1],
                [0x33, 0x33, 0, 0, 0, 1],
            ] {
                for mut frame in [with(|_| ()), with_v6(|_| ())] {
                    frame[..6].copy_from_slice(&station);
                    let one = case("a group", tables.clone(), frame, Expect::Pass);
                    check(&mut kernel, &one).unwrap();
                }
            }
        }
    }
}
