//! Frames that are cut short, or lie about their lengths: each hook's program and the pure function
//! agree, and do what is said here. Needs root.

use gate_common::abi::Counter;
use gate_common::state::Closed;
use gate_tests::cases::{
    DROPPED, Expect, PASSES, SLOTS, UNPARSED, case, check, check_all, dropping, setup, with,
    with_v6,
};
use gate_tests::differ::{Differ, Expected};
use gate_tests::kernel::{Kernel, Link};
use gate_tests::packet::{Spec, extension, options_header};

/// What becomes of a frame that was cut to `len` bytes, where it begins with so many VLAN tags and
/// is whole with so many bytes.
fn of_cut(len: usize, tags: usize, whole: usize) -> Expected {
    match len {
        // Nothing says yet that this is IP.
        _ if len < 14 + 4 * tags => PASSES,
        _ if len < whole => UNPARSED,
        _ => DROPPED,
    }
}

#[test]
fn a_frame_that_is_cut_to_any_of_0_to_128_bytes_passes_until_it_is_whole() {
    let v6 = Spec {
        extensions: vec![(extension::DESTINATION, options_header(16)); 2],
        ..Spec::v6()
    };
    let tagged = Spec {
        vlans: vec![(0x88a8, 1), (0x8100, 2)],
        options: vec![1; 8],
        ..Spec::default()
    };
    for spec in [Spec::default(), Spec::v6(), tagged, v6] {
        let whole = spec.build().len();
        let frame = Spec {
            padded_to: 128,
            ..spec.clone()
        }
        .build();
        for slot in SLOTS {
            let mut differ = Differ::load(slot, Link::Ethernet).unwrap();
            let cuts = (0..=128_usize)
                .map(|len| (frame[..len].to_vec(), of_cut(len, spec.vlans.len(), whole)));
            let (run, pure): (Vec<_>, Vec<_>) = cuts.partition(|(cut, _)| differ.takes(cut));
            differ.expect(&dropping(), &run).unwrap();
            // The kernel takes no test run that is as short as this.
            differ
                .expect_of_the_pure_function(&dropping(), &pure)
                .unwrap();
            assert_eq!(run.len() + pure.len(), 129);
        }
    }
}

/// A SYN whose TCP header has zeros wherever flags may be looked for by mistake.
fn blank(spec: Spec) -> Vec<u8> {
    let spec = Spec {
        tcp_options: vec![0; 20],
        ..spec
    };
    let mut frame = spec.build();
    let tcp = frame.len() - 40;
    frame[tcp + 14..].fill(0);
    frame
}

fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn a_lying_ip_header_length_is_unparsed_or_leads_to_no_syn() {
    let frame = blank(Spec::default());
    let of = |words: u8| match words {
        0..5 => UNPARSED,
        5 => DROPPED,
        // The flags would be among the zeros.
        6..12 => PASSES,
        // Or behind the end.
        _ => UNPARSED,
    };
    let lies = (0..16).map(|words| (patched(&frame, 14, &[0x40 | words]), of(words)));
    // And every other version with the right length.
    let versions = (0..16).filter(|version| *version != 4);
    let versions = versions.map(|version| (patched(&frame, 14, &[version << 4 | 5]), UNPARSED));
    let cases: Vec<_> = lies.chain(versions).collect();
    for slot in SLOTS {
        check_all(slot, &dropping(), &cases).unwrap();
    }
}

#[test]
fn a_lying_total_length_is_unparsed_or_makes_padding_data() {
    // 60 bytes of packet, then padding.
    let frame = Spec {
        padded_to: 100,
        ..Spec::default()
    }
    .build();
    for slot in SLOTS {
        let mut kernel = Kernel::load(slot).unwrap();
        for total in (0..=200).chain([0x7fff, 0x8000, 0xffff]) {
            let expect = match total {
                0..60 => Expect::Unparsed,
                60 => Expect::Hold,
                // What is padding would be data in the SYN.
                61..=86 => Expect::Drop(Counter::Uncaptured),
                _ => Expect::Unparsed,
            };
            let lie = patched(&frame, 16, &u16::to_be_bytes(total));
            check(
                &mut kernel,
                &case("total length", setup(Closed::Hold), lie, expect),
            )
            .unwrap();
        }
    }
}

#[test]
fn a_lying_payload_length_of_ipv6_is_unparsed_or_makes_padding_data() {
    // 40 bytes of payload, then padding.
    let frame = Spec {
        padded_to: 120,
        ..Spec::v6()
    }
    .build();
    for slot in SLOTS {
        let mut kernel = Kernel::load(slot).unwrap();
        // 0 is that of a jumbogram.
        for payload in (0..=200).chain([0x7fff, 0x8000, 0xffff]) {
            let expect = match payload {
                0..40 => Expect::Unparsed,
                40 => Expect::Hold,
                41..=66 => Expect::Drop(Counter::Uncaptured),
                _ => Expect::Unparsed,
            };
            let lie = patched(&frame, 18, &u16::to_be_bytes(payload));
            check(
                &mut kernel,
                &case("payload length", setup(Closed::Hold), lie, expect),
            )
            .unwrap();
        }
    }
}

#[test]
fn a_lying_data_offset_is_unparsed_or_makes_options_data() {
    for (frame, at) in [(with(|_| ()), 34), (with_v6(|_| ()), 54)] {
        for slot in SLOTS {
            let mut kernel = Kernel::load(slot).unwrap();
            for words in 0..16_u8 {
                let expect = match words {
                    0..5 => Expect::Unparsed,
                    5..10 => Expect::Drop(Counter::Uncaptured),
                    10 => Expect::Hold,
                    _ => Expect::Unparsed,
                };
                let lie = patched(&frame, at + 12, &[words << 4]);
                check(
                    &mut kernel,
                    &case("data offset", setup(Closed::Hold), lie, expect),
                )
                .unwrap();
            }
        }
    }
}

#[test]
fn a_lying_length_of_an_extension_header_is_unparsed_or_leads_to_no_syn() {
    // Eight bytes of header, then 40 of TCP with zeros behind its flags.
    let of_eight = |units: u8| match units {
        0 => DROPPED,
        1..=3 => PASSES,
        _ => UNPARSED,
    };
    let of_four = |units: u8| match units {
        0 => DROPPED,
        1..=6 => PASSES,
        _ => UNPARSED,
    };
    // A fragment header has no length: the byte is reserved.
    let of_none = |_| DROPPED;
    type Of = fn(u8) -> Expected;
    let kinds: [(u8, Of); 5] = [
        (extension::HOP_BY_HOP, of_eight),
        (extension::ROUTING, of_eight),
        (extension::DESTINATION, of_eight),
        (extension::AUTH, of_four),
        (extension::FRAGMENT, of_none),
    ];
    let mut cases = Vec::new();
    for (kind, of) in kinds {
        let frame = blank(Spec {
            extensions: vec![(kind, vec![0; 8])],
            ..Spec::v6()
        });
        cases.extend((0..=255).map(|units| (patched(&frame, 55, &[units]), of(units))));
    }
    for slot in SLOTS {
        check_all(slot, &dropping(), &cases).unwrap();
    }
}
