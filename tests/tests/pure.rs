//! Properties of the pure functions, over frames of all shapes. No root needed.

use std::net::{Ipv4Addr, Ipv6Addr};

use gate_common::abi::{CAPTURE_LEN, Counter};
use gate_common::checksum::{Damaged, Found, complete};
use gate_common::flow::GateId;
use gate_common::parse::{Frame, Syn, locate};
use gate_common::state::{BootTime, Closed, StateWord};
use gate_tests::kernel::{Action, Pure, Setup};
use gate_tests::packet::{Checksum, Spec, extension, options_header};
use gate_userspace::hooks::Slot;
use proptest::prelude::*;

prop_compose! {
    /// A SYN of any shape that the parser claims to know.
    fn spec()(
        v6 in any::<bool>(),
        source in any::<(u32, u128)>(),
        destination in any::<(u32, u128)>(),
        ports in any::<(u16, u16)>(),
        isn in any::<u32>(),
        vlans in prop::collection::vec((prop_oneof![Just(0x8100_u16), Just(0x88a8)], any::<u16>()), 0..=2),
        options in 0..=10_usize,
        extensions in 0..=6_usize,
        tcp_options in prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        payload in prop::collection::vec(any::<u8>(), 0..40),
        ecn in 0..4_u8,
        padding in 0..40_usize,
    ) -> Spec {
        let base = if v6 { Spec::v6() } else { Spec::default() };
        let mut spec = Spec {
            vlans,
            isn,
            source_port: ports.0,
            destination_port: ports.1,
            tcp_options: tcp_options.concat(),
            payload,
            flags: base.flags | ecn << 6,
            ..base
        };
        if v6 {
            spec.source = Ipv6Addr::from(source.1).into();
            spec.destination = Ipv6Addr::from(destination.1).into();
            spec.extensions = vec![(extension::DESTINATION, options_header(8)); extensions];
        } else {
            spec.source = Ipv4Addr::from(source.0).into();
            spec.destination = Ipv4Addr::from(destination.0).into();
            spec.options = vec![1; options * 4];
        }
        spec.padded_to = spec.build().len() + padding;
        spec
    }
}

fn parse(frame: &[u8]) -> Option<Syn> {
    match locate(frame) {
        Frame::Tcp(at) if at.is_pure_syn() => at.syn(frame),
        Frame::Tcp(_) | Frame::Other | Frame::Unparsed => None,
    }
}

proptest! {
    #[test]
    fn every_field_is_found(spec in spec()) {
        let frame = spec.build();
        let syn = parse(&frame).expect("a SYN");
        let flow = syn.attempt.flow;
        prop_assert_eq!(flow.source_port.number(), spec.source_port);
        prop_assert_eq!(flow.endpoint.port.number(), spec.destination_port);
        prop_assert_eq!(syn.attempt.isn.number(), spec.isn);
        prop_assert_eq!(syn.payload, spec.payload.len());
        prop_assert_eq!(syn.end, Spec { padded_to: 0, ..spec.clone() }.build().len());
        let octets = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(v6) => v6.octets(),
        };
        prop_assert_eq!(flow.source.octets(), octets(spec.source));
        prop_assert_eq!(flow.endpoint.address.octets(), octets(spec.destination));
    }

    #[test]
    fn a_checksum_is_whole_completed_or_damaged(spec in spec()) {
        let built = |checksum| {
            let frame = Spec { checksum, padded_to: 0, ..spec.clone() }.build();
            let Frame::Tcp(at) = locate(frame.as_slice()) else {
                panic!("no TCP");
            };
            (frame, at)
        };
        let (whole, at) = built(Checksum::Whole);
        let mut frame = whole.clone();
        prop_assert_eq!(complete(&mut frame, &at), Ok(Found::Whole));
        prop_assert_eq!(&frame, &whole);

        // Once in 65,536 frames the partial sum happens to be the whole one.
        let (mut frame, at) = built(Checksum::Partial);
        if frame != whole {
            prop_assert_eq!(complete(&mut frame, &at), Ok(Found::Completed));
            prop_assert_eq!(&frame, &whole);
        }

        let (mut frame, at) = built(Checksum::Wrong);
        let before = frame.clone();
        if before != built(Checksum::Partial).0 {
            prop_assert_eq!(complete(&mut frame, &at), Err(Damaged));
            prop_assert_eq!(frame, before, "never repaired");
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_passed(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(syn) = parse(&bytes) {
            prop_assert!(syn.end <= bytes.len());
            prop_assert!(syn.at.transport + 20 + syn.payload <= syn.end);
        }
    }

    #[test]
    fn only_a_closed_gate_does_anything(spec in spec(), mode in 0..3, closed in any::<bool>()) {
        let frame = spec.build();
        let syn = parse(&frame).expect("a SYN");
        let gate = GateId(1);
        let mode = [Closed::Hold, Closed::Drop, Closed::Reject][mode as usize];
        let deadline = BootTime(if closed { 2_000_000 } else { 1_000 });
        let setup = Setup {
            armed: true,
            endpoints: vec![(syn.attempt.flow.endpoint, gate)],
            words: vec![(gate, StateWord::closed(mode, deadline))],
            ..Setup::default()
        };
        let effect = Pure::new(Slot::Xdp, setup, BootTime(1_000_000)).judge(&frame);
        if closed {
            prop_assert_ne!(effect.action, Action::Pass);
        } else {
            prop_assert_eq!(effect.action, Action::Pass);
            prop_assert_eq!(effect.counted, vec![(gate, Counter::Expired)]);
        }
        prop_assert_eq!(
            effect.held.is_some(),
            closed && mode == Closed::Hold && spec.payload.is_empty() && syn.end <= CAPTURE_LEN
        );
    }
}
