//! Single frames through the kernel's programs and the pure function, and what is expected of them.

use anyhow::Result;
use gate_common::abi::Counter;
use gate_common::flow::{Address, EndpointKey, GateId, Port};
use gate_common::state::{BootTime, Closed, StateWord};
use gate_userspace::clock;
use gate_userspace::hooks::Slot;

use crate::differ::{Differ, Expected};
use crate::kernel::{Action, Effect, Kernel, Link, Pure, Setup};
use crate::packet::Spec;

/// The gate of [`setup`].
pub const GATE: GateId = GateId(1);
/// Another one.
pub const OTHER: GateId = GateId(2);

/// An endpoint of IPv4.
pub fn v4(octets: [u8; 4], port: u16) -> EndpointKey {
    EndpointKey::new(Address::from_v4(octets), Port::new(port))
}

/// `[fd00::5]` with a port.
pub fn v6(port: u16) -> EndpointKey {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[15] = 5;
    EndpointKey::new(Address::from_v6(octets), Port::new(port))
}

/// A wildcard endpoint.
pub fn any(port: u16) -> EndpointKey {
    EndpointKey::new(Address::ANY, Port::new(port))
}

/// A lease that runs through the test, or one that ran out.
pub fn word(mode: Closed, running: bool) -> StateWord {
    let now = clock::now().0;
    let deadline = if running {
        now + 3_600_000_000_000
    } else {
        now / 2
    };
    StateWord::closed(mode, BootTime(deadline))
}

/// The endpoints that the frames of [`Spec`] go to, closed like this.
pub fn setup(mode: Closed) -> Setup {
    Setup {
        armed: true,
        endpoints: vec![(v4([10, 0, 0, 5], 8080), GATE), (v6(8080), GATE)],
        words: vec![(GATE, word(mode, true))],
        ..Setup::default()
    }
}

/// Addresses a frame to the device of a test run, which is loopback: its address is all zeros.
pub fn to_this_host(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].fill(0);
    frame
}

/// What is expected of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It passes without a word.
    Pass,
    /// It passes, and is counted.
    PassCounted(GateId, Counter),
    /// It passes, because it can't be parsed.
    Unparsed,
    /// [`GATE`] holds it, for the first time.
    Hold,
    /// [`GATE`] drops it, for this reason.
    Drop(Counter),
    /// [`GATE`] answers it.
    Reply,
}

/// One frame.
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// The tables.
    pub setup: Setup,
    /// The frame.
    pub frame: Vec<u8>,
    /// What is expected of it.
    pub expect: Expect,
}

/// One frame, by its parts.
pub fn case(name: &'static str, setup: Setup, frame: Vec<u8>, expect: Expect) -> Case {
    Case {
        name,
        setup,
        frame,
        expect,
    }
}

/// The kernel and the pure function must do alike with a frame, and do what is expected.
pub fn check(kernel: &mut Kernel, case: &Case) -> Result<Effect> {
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

/// A frame of IPv4, changed.
pub fn with(change: impl FnOnce(&mut Spec)) -> Vec<u8> {
    let mut spec = Spec::default();
    change(&mut spec);
    spec.build()
}

/// A frame of IPv6, changed.
pub fn with_v6(change: impl FnOnce(&mut Spec)) -> Vec<u8> {
    let mut spec = Spec::v6();
    change(&mut spec);
    spec.build()
}

/// Every hook of packets.
pub const SLOTS: [Slot; 3] = [Slot::Xdp, Slot::TcIngress, Slot::TcEgress];

/// A frame passes without a word.
pub const PASSES: Expected = (Action::Pass, None);
/// A frame passes, because it can't be parsed.
pub const UNPARSED: Expected = (Action::Pass, Some((GateId::HOST, Counter::Unparsed)));
/// [`GATE`] drops a SYN, because that is its mode.
pub const DROPPED: Expected = (Action::Drop, Some((GATE, Counter::Dropped)));

/// A gate that drops, which keeps nothing, so that each frame is judged by itself.
pub fn dropping() -> Setup {
    setup(Closed::Drop)
}

/// As [`check`], of many frames, one after another, with the same tables.
pub fn check_all(slot: Slot, tables: &Setup, cases: &[(Vec<u8>, Expected)]) -> Result<()> {
    Differ::load(slot, Link::Ethernet)?.expect(tables, cases)
}
