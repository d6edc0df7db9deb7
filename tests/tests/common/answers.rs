//! What a client that sends frames by hand is answered.

use std::time::Duration;

use gate_common::parse::{Frame, Located, locate};
use gate_tests::packet::flags;
use gate_tests::tap::{Seen, Tap};

/// Long enough for an answer, and too short for a retransmission.
pub const ANSWER: Duration = Duration::from_millis(400);

/// Ways to attach: the hook, and whether by filters instead of TCX.
pub const HOOKS: [(&str, bool); 4] = [
    ("xdp", false),
    ("xdp-generic", false),
    ("tc-ingress", false),
    ("tc-ingress", true),
];

/// Where the parts of a TCP segment are that came in.
pub fn parsed(seen: &Seen) -> Option<Located> {
    match locate(seen.frame.as_slice()) {
        Frame::Tcp(at) if !seen.outgoing => Some(at),
        _ => None,
    }
}

/// The numbers that the server's answers to SYNs acknowledge, until none comes for a while.
pub fn acknowledged(tap: &Tap) -> Vec<u32> {
    let mut all = Vec::new();
    let is_answer = |seen: &Seen| {
        parsed(seen)
            .is_some_and(|at| at.flags & (flags::SYN | flags::ACK) == flags::SYN | flags::ACK)
    };
    while let Some(seen) = tap.next(ANSWER, is_answer).unwrap() {
        let at = parsed(&seen).unwrap().transport + 8;
        all.push(u32::from_be_bytes(
            seen.frame[at..at + 4].try_into().unwrap(),
        ));
    }
    all
}
