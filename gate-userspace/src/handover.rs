//! Handing a gate's new connections to another backend, while the one that had them finishes its
//! own. The words are here; `switch` carries them out.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::str::FromStr;

use gate_common::flow::EndpointKey;
use gate_common::handover::{MAX_SHARES, MAX_WEIGHT, Share, Split, Steered};

use crate::drain::driver::Drained;
use crate::endpoint::{Endpoint, EndpointError};
use crate::error::exit;

mod renew;
mod status;
mod switch;

pub use renew::{has_backend, is_lost, renew, takers};
pub use status::{HandoverStatus, ToStatus, status};
pub use switch::{Handed, Part, back, hand_over};
pub(crate) use switch::{Prepared, clear_up, ready, store as switch_to};

/// A backend as it is asked for, and its part of the new connections: `10.0.0.6:80`,
/// `10.0.0.6:80=9`, or `127.0.0.1:8082,[::1]:8082` for one that listens at several addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    /// Its address.
    pub at: Endpoint,
    /// Where it listens as well, for the other family.
    pub also: Option<Endpoint>,
    /// Its weight.
    pub weight: u32,
}

/// Why a text is no portion.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortionError {
    /// An address is none.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Addresses that are not one of each family.
    #[error(
        "{0} is no backend: it has one address, or one of each family, as in \
         127.0.0.1:8082,[::1]:8082; several backends are given by several --to"
    )]
    Families(String),
    /// A weight that is none.
    #[error("{0} is no weight: it is a number from 0 to {MAX_WEIGHT}, as in 10.0.0.6:80=9")]
    Weight(String),
}

impl Portion {
    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Endpoint> {
        [Some(self.at), self.also].into_iter().flatten()
    }
}

impl FromStr for Portion {
    type Err = PortionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (addresses, weight) = match text.split_once('=') {
            None => (text, 1),
            Some((addresses, weight)) => {
                let number = weight.parse().ok().filter(|number| *number <= MAX_WEIGHT);
                let number = number.filter(|number: &u32| number.to_string() == weight);
                let wrong = || PortionError::Weight(weight.to_owned());
                (addresses, number.ok_or_else(wrong)?)
            }
        };
        let all: Result<Vec<Endpoint>, _> = addresses.split(',').map(str::parse).collect();
        let families = || PortionError::Families(addresses.to_owned());
        let is_v4 = |endpoint: Endpoint| endpoint.address.map(|address| address.is_ipv4());
        let (at, also) = match all?[..] {
            [at] => (at, None),
            [at, also] if matches!((is_v4(at), is_v4(also)), (Some(a), Some(b)) if a != b) => {
                (at, Some(also))
            }
            _ => return Err(families()),
        };
        Ok(Self { at, also, weight })
    }
}

/// Which hook is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookChoice {
    /// The look-up of listeners where the gate's endpoints are this host's, else connect(2).
    Auto,
    /// `sk_lookup`.
    SkLookup,
    /// `cgroup/connect4` and `connect6`.
    CgroupConnect,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The backends. May be empty where there is a process.
    pub to: Vec<Portion>,
    /// The process whose socket is meant.
    pub pid: Option<u32>,
    /// By which hook.
    pub hook: HookChoice,
    /// The control group whose processes are meant; none for all.
    pub cgroup: Option<PathBuf>,
}

/// What became of the backends that get no new connections any more.
#[derive(Clone, Debug)]
pub enum Finished {
    /// There was none.
    NobodyLeft,
    /// These gates still give them new connections.
    StillGiven(Vec<String>),
    /// They did not become empty in time.
    Remaining(Drained),
    /// They were empty, and the command ran.
    Ran(Drained, ExitStatus),
}

impl Finished {
    /// The exit code: that of the command where it ran, 128 + N for signal N.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NobodyLeft | Self::StillGiven(_) => exit::STATE,
            Self::Remaining(drained) => drained.exit_code(),
            Self::Ran(_, status) => {
                let signalled = status.signal().map(|signal| 128 + signal);
                let code = status.code().or(signalled);
                code.and_then(|code| u8::try_from(code).ok())
                    .unwrap_or(exit::FAILURE)
            }
        }
    }
}

/// Why a gate is not handed over. Its text is one line: the cause, then the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All weights are 0.
    #[error("the weights sum to 0, so nobody would get new connections: give one backend a weight")]
    NoWeight,
    /// More backends than fit.
    #[error("that are {0} backends: {MAX_SHARES} at the most share a gate")]
    TooMany(usize),
    /// A backend is given more than once.
    #[error("{0} is given twice: add its weights up")]
    Twice(Endpoint),
    /// A process can't be several backends.
    #[error("--pid says whose socket is meant, so only one --to goes with it")]
    PidOfMany,
    /// A process's sockets are of no use to connect(2).
    #[error(
        "--pid and --cgroup do not go together with this hook: --pid is for the backend's host \
         (--hook sk-lookup), --cgroup for the caller's (--hook cgroup-connect)"
    )]
    WrongHost,
    /// The gate's own listener.
    #[error(
        "{backend} is the gate's own backend, so that would be a loop: `gate handover {gate} --back` \
         returns to it"
    )]
    Loop {
        /// The backend.
        backend: Endpoint,
        /// The gate.
        gate: String,
    },
    /// A backend whose socket can't take connections of some endpoint's family.
    #[error(
        "{backend} takes no {family}, and {gate} has {endpoint}: give a listener of both families \
         ('*:{}'), or one of each, as in --to 127.0.0.1:{},[::1]:{}",
        backend.port, backend.port, backend.port
    )]
    Family {
        /// The backend.
        backend: Endpoint,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The gate.
        gate: String,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Some endpoints are this host's and some are not.
    #[error(
        "{here} is this host's and {there} is not: define a gate for each, because new connections \
         are handed over where they arrive, or where they are made"
    )]
    Mixed {
        /// An endpoint of this host.
        here: Endpoint,
        /// One of another.
        there: Endpoint,
    },
    /// An endpoint whose connections don't arrive here.
    #[error(
        "{0} is no address of this host, so its connections do not arrive here: --hook \
         cgroup-connect hands over those that are made here"
    )]
    NotHere(Endpoint),
    /// A wildcard where connections are made.
    #[error("{0} stands for this host's own addresses: connect(2) is handed over by address only")]
    Wildcard(Endpoint),
    /// A gate can't be forgotten while its connections go elsewhere.
    #[error("{0} is handed over: `gate handover {0} --back` first")]
    HandedOver(String),
    /// Addresses of both families where a connection is made to one.
    #[error(
        "connect(2) goes to one address: give {0} to a gate of its family, and the other address to \
         one of the other"
    )]
    BothFamilies(Endpoint),
    /// The gate was changed meanwhile.
    #[error("{0} was changed by another command meanwhile: try again")]
    Changed(String),
}

impl Refusal {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoWeight
            | Self::TooMany(_)
            | Self::Twice(_)
            | Self::PidOfMany
            | Self::WrongHost
            | Self::Loop { .. } => exit::USAGE,
            Self::Family { .. }
            | Self::Mixed { .. }
            | Self::NotHere(_)
            | Self::Wildcard(_)
            | Self::BothFamilies(_)
            | Self::HandedOver(_) => exit::STATE,
            Self::Changed(_) => exit::FAILURE,
        }
    }
}

impl Plan {
    /// Looks for what is wrong by itself.
    ///
    /// # Errors
    /// Those of the command line.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.to.len() > MAX_SHARES {
            return Err(Refusal::TooMany(self.to.len()));
        }
        if !self.to.is_empty() && self.to.iter().all(|portion| portion.weight == 0) {
            return Err(Refusal::NoWeight);
        }
        let mut seen = BTreeSet::new();
        let mut all = self.to.iter().flat_map(Portion::addresses);
        if let Some(twice) = all.find(|endpoint| !seen.insert(*endpoint)) {
            return Err(Refusal::Twice(twice));
        }
        match (self.pid, self.hook) {
            (Some(_), _) if self.to.len() > 1 => Err(Refusal::PidOfMany),
            (Some(_), HookChoice::CgroupConnect) => Err(Refusal::WrongHost),
            (_, HookChoice::SkLookup) if self.cgroup.is_some() => Err(Refusal::WrongHost),
            _ => Ok(()),
        }
    }
}

/// A share as it is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weighed {
    pub backend: Endpoint,
    pub also: Option<Endpoint>,
    pub weight: u32,
    pub flags: u32,
}

impl Weighed {
    pub(crate) const fn is_own(&self) -> bool {
        self.flags & Share::OWN != 0
    }
}

/// Puts a split together; shares without weight get nothing and are left out.
pub(crate) fn split(hook: Steered, shares: &[Weighed]) -> Split {
    let mut split = Split {
        hook: hook as u32,
        total: 0,
        shares: [Share::NONE; MAX_SHARES],
    };
    let weighty = shares.iter().filter(|share| share.weight > 0);
    for (slot, share) in split.shares.iter_mut().zip(weighty) {
        split.total += share.weight;
        *slot = Share {
            backend: EndpointKey::from(share.backend),
            also: share.also.map_or(EndpointKey::NONE, EndpointKey::from),
            limit: split.total,
            flags: share.flags,
        };
    }
    split
}

/// A hook's name, as `gate status` shows it.
#[must_use]
pub const fn hook_name(hook: Steered) -> &'static str {
    match hook {
        Steered::Lookup => "sk-lookup",
        Steered::Connect => "cgroup-connect",
    }
}

/// The backends of a split with their weights; what is the gate's own is marked.
#[must_use]
pub fn portions(split: &Split) -> Vec<(Endpoint, u32, bool)> {
    let mut before = 0;
    let portion = |share: &Share| {
        let weight = share.limit - before;
        before = share.limit;
        (share.backend.into(), weight, share.is_own())
    };
    split.used().map(portion).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(to: &[&str]) -> Plan {
        Plan {
            to: to.iter().map(|text| text.parse().expect(text)).collect(),
            pid: None,
            hook: HookChoice::Auto,
            cgroup: None,
        }
    }

    #[test]
    fn portions_are_read() {
        let portion: Portion = "127.0.0.1:8082,[::1]:8082=9".parse().expect("a portion");
        assert_eq!(portion.addresses().count(), 2);
        assert_eq!(portion.weight, 9);
        assert_eq!("*:80".parse::<Portion>().expect("a portion").weight, 1);
        for text in [
            "10.0.0.5:80=",
            "10.0.0.5:80=-1",
            "10.0.0.5:80=09",
            "10.0.0.5:80=1000001",
        ] {
            let error = text.parse::<Portion>().expect_err(text);
            assert!(matches!(error, PortionError::Weight(_)), "{text}: {error}");
        }
        for text in [
            "*:80,[::]:80",
            "10.0.0.5:80,10.0.0.6:80",
            "1.1.1.1:1,[::1]:1,[::2]:1",
        ] {
            let error = text.parse::<Portion>().expect_err(text);
            assert!(
                matches!(error, PortionError::Families(_)),
                "{text}: {error}"
            );
        }
        for text in ["", "=1", "10.0.0.5", "10.0.0.5:80,", "10.0.0.5:80,x=1"] {
            let error = text.parse::<Portion>().expect_err(text);
            assert!(
                matches!(error, PortionError::Endpoint(_)),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn what_is_wrong_by_itself_is_refused() {
        let many: Vec<String> = (1..=9).map(|port| format!("10.0.0.5:{port}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let of_pid = |to: &[&str]| Plan {
            pid: Some(1),
            ..plan(to)
        };
        let by = |hook, cgroup: Option<&str>, pid| Plan {
            hook,
            cgroup: cgroup.map(PathBuf::from),
            pid,
            ..plan(&["10.0.0.5:80"])
        };
        use HookChoice as H;
        for (plan, refusal) in [
            (
                plan(&["10.0.0.5:80=0", "10.0.0.6:80=0"]),
                Some(Refusal::NoWeight),
            ),
            (plan(&["10.0.0.5:80=0", "10.0.0.6:80=1"]), None),
            (plan(&many), Some(Refusal::TooMany(9))),
            (
                plan(&["10.0.0.5:80", "10.0.0.5:80=2"]),
                Some(Refusal::Twice("10.0.0.5:80".parse().expect("an endpoint"))),
            ),
            (
                of_pid(&["10.0.0.5:80", "10.0.0.6:80"]),
                Some(Refusal::PidOfMany),
            ),
            (of_pid(&[]), None),
            (
                by(H::CgroupConnect, None, Some(1)),
                Some(Refusal::WrongHost),
            ),
            (
                by(H::SkLookup, Some("/sys"), None),
                Some(Refusal::WrongHost),
            ),
            (by(H::CgroupConnect, Some("/sys"), None), None),
        ] {
            assert_eq!(plan.check().err(), refusal, "{plan:?}");
        }
    }

    #[test]
    fn a_split_keeps_what_it_was_made_of() {
        let weighed = |text: &str, weight, flags| Weighed {
            backend: text.parse().expect(text),
            also: None,
            weight,
            flags,
        };
        let shares = [
            weighed("10.0.0.5:80", 9, Share::OWN),
            weighed("10.0.0.6:80", 0, 0),
            weighed("10.0.0.7:80", 1, 0),
        ];
        let split = split(Steered::Lookup, &shares);
        assert_eq!(split.total, 10);
        let read: Vec<_> = portions(&split)
            .into_iter()
            .map(|(backend, weight, is_own)| (backend.to_string(), weight, is_own))
            .collect();
        let expected = [
            ("10.0.0.5:80".to_owned(), 9, true),
            ("10.0.0.7:80".to_owned(), 1, false),
        ];
        assert_eq!(read, expected);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _answered = text.parse::<Portion>();
        }
    }
}
