//! What the kernel programs and the controller share: the map layouts ([`abi`]), the
//! types of a flow ([`flow`]), the state word ([`state`]), and the pure functions that
//! judge a frame ([`parse`], [`verdict`]), answer it ([`reset`]) and make it whole
//! again ([`checksum`]).
//!
//! Nothing here does I/O or knows the time: both are passed in, so the same code runs in
//! the BPF programs and in `cargo test`.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod flow;
pub mod handover;
pub mod parse;
pub mod reset;
pub mod shares;
pub mod state;
pub mod verdict;
