//! Frames and tables made by chance: the kernel's programs and the pure function do the same.
//! Needs root.

use std::env;

use anyhow::{Context, Result};
use gate_common::abi::Counter;
use gate_tests::differ::{self, Differ};
use gate_tests::extent::Extent;
use gate_tests::kernel::Link;
use gate_userspace::hooks::Slot;

/// Each of the five programs gets a fifth of a million frames in every test run, and of a hundred
/// million when all is tried.
const SHORT: u64 = 200_000;
const FULL: u64 = 20_000_000;

/// The programs: on each hook, and on TC also for interfaces without an Ethernet header.
const ALL: [(Slot, Link); 5] = [
    (Slot::Xdp, Link::Ethernet),
    (Slot::TcIngress, Link::Ethernet),
    (Slot::TcEgress, Link::Ethernet),
    (Slot::TcIngress, Link::Bare),
    (Slot::TcEgress, Link::Bare),
];

/// A seed of one's own, to see a difference again.
const SEED: &str = "GATE_TEST_SEED";

fn seed() -> Result<u64> {
    match env::var(SEED) {
        Ok(text) => {
            let digits = text.strip_prefix("0x").context("a seed begins with 0x")?;
            Ok(u64::from_str_radix(digits, 16)?)
        }
        // Other frames in each run, but for the short ones, which must not fail by chance.
        Err(_) => Ok(Extent::wanted().pick(1, fastrand::u64(..))),
    }
}

fn any_frame_is_judged_alike(slot: Slot, link: Link) -> Result<()> {
    let frames = Extent::wanted().pick(SHORT, FULL);
    let seed = seed()?;
    let report = Differ::load(slot, link)?.run(seed, frames)?;
    println!(
        "{slot:?}, {link:?}: seed {seed:#x}, {:.0} frames a second, {report:?}",
        report.rate()
    );
    // Frames that only pass would prove nothing: whatever a frame can cause was caused.
    for (counter, name) in Counter::ALL {
        let is_reached = report.counted[counter as usize] > 0;
        // Nothing is released here.
        let can_be = counter != Counter::Released;
        assert_eq!(is_reached, can_be, "{name}: {report:?}");
    }
    assert!(report.answered > 0, "{report:?}");
    Ok(())
}

#[test]
fn any_frame_through_any_tables_is_judged_alike_by_xdp() -> Result<()> {
    any_frame_is_judged_alike(Slot::Xdp, Link::Ethernet)
}

#[test]
fn any_frame_through_any_tables_is_judged_alike_by_tc_ingress() -> Result<()> {
    any_frame_is_judged_alike(Slot::TcIngress, Link::Ethernet)
}

#[test]
fn any_frame_through_any_tables_is_judged_alike_by_tc_egress() -> Result<()> {
    any_frame_is_judged_alike(Slot::TcEgress, Link::Ethernet)
}

#[test]
fn any_packet_without_an_ethernet_header_is_judged_alike_by_tc_ingress() -> Result<()> {
    any_frame_is_judged_alike(Slot::TcIngress, Link::Bare)
}

#[test]
fn any_packet_without_an_ethernet_header_is_judged_alike_by_tc_egress() -> Result<()> {
    any_frame_is_judged_alike(Slot::TcEgress, Link::Bare)
}

/// What once was judged differently never is again, by any hook, with its own tables and others.
#[test]
fn every_frame_that_was_kept_is_judged_alike() -> Result<()> {
    const OTHERS: u64 = 32;
    let examples = differ::read_all()?;
    assert!(!examples.is_empty());
    for (slot, link) in ALL {
        let mut differ = Differ::load(slot, link)?;
        for example in &examples {
            let frames = example.frames.iter();
            let frames: Vec<_> = frames.filter(|it| differ.takes(it)).cloned().collect();
            for seed in example.seed.into_iter().chain(0..OTHERS) {
                let alike = differ.replay(&differ::setup(seed), &frames);
                alike.with_context(|| {
                    format!("{}, {slot:?}, {link:?}, seed {seed:#x}", example.name)
                })?;
            }
        }
    }
    Ok(())
}
