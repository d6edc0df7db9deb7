//! What this host can do: rights, bpffs, the kernel's features, each interface's hook, and what
//! will be worse for what is missing. Changes nothing, and needs no rights to say which are missing.

mod host;
mod interface;
mod report;

use aya::EbpfLoader;
use aya::programs::Program;

use crate::attach::{By, NO_TCX};
use crate::error::{Error, Result, exit};
use crate::features::{self, Found, Need, Probe, State};
use crate::interfaces;
use crate::object::{self, OBJECT};
use crate::pins::Pins;
use crate::rights;

pub use host::Host;
pub use interface::{Examined, Other};
pub use report::{json, words};

/// Whether the kernel takes the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// It was not tried: it could not succeed.
    Untried,
    /// It takes all of them.
    Loads(usize),
    /// It refuses one, for this reason.
    Refused(String),
    /// It refuses `bpf(2)` to this process.
    Forbidden,
}

/// All that was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The rights that this process lacks.
    pub missing_rights: Vec<&'static str>,
    /// What the host's files tell.
    pub host: Host,
    /// What is in the way of the pins: no bpffs, or a folder that isn't gate's.
    pub pins: Option<String>,
    /// The kernel's features.
    pub features: Vec<Found>,
    /// Whether the programs load.
    pub load: Load,
    /// The interfaces of this network namespace.
    pub interfaces: Vec<Examined>,
}

/// The end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Gate works.
    Works,
    /// Gate works, but for some limits.
    Limited,
    /// Gate does not work.
    Impossible,
    /// That can't be told without more rights.
    Unknown,
}

impl Verdict {
    /// The exit code that goes with it.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Works | Self::Limited => exit::DONE,
            Self::Impossible => exit::FAILURE,
            Self::Unknown => exit::RIGHTS,
        }
    }
}

/// Examines the host.
///
/// # Errors
/// When the kernel tells not even the interfaces or this process's rights.
pub fn examine() -> Result<Findings> {
    let missing_rights = rights::missing()?;
    let is_allowed = missing_rights.is_empty();
    let features = features::survey();
    let lacks_any = features
        .iter()
        .any(|found| found.feature.need == Need::Required && found.state != State::Present);
    let load = match is_allowed && !lacks_any {
        true => rehearse(),
        false => Load::Untried,
    };
    let here = Pins::here().and_then(|pins| {
        pins.check_version()?;
        match pins.check_owner() {
            Err(error @ Error::ForeignFolder { .. }) => Err(error),
            // It need not be there.
            _ => Ok(pins),
        }
    });
    let all = interfaces::list()?;
    let attachments = interface::attachments(here.as_ref().ok().filter(|_| is_allowed));
    Ok(Findings {
        interfaces: all
            .iter()
            .map(|one| interface::examine(one, &all, attachments.as_deref()))
            .collect(),
        host: Host::look()?,
        pins: here.err().map(|error| error.to_string()),
        missing_rights,
        features,
        load,
    })
}

/// Loads every program with maps of its own, and lets go of them.
fn rehearse() -> Load {
    let rehearsed = || -> Result<usize> {
        let mut ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &0_u8, true)
            .map_max_entries("HELD", 1)
            .map_max_entries("RELEASED", 1)
            .load(OBJECT)
            .map_err(object::load_error)?;
        let mut count = 0;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(program) => object::loaded(name, program.load())?,
                Program::SchedClassifier(program) => object::loaded(name, program.load())?,
                _ => continue,
            }
            count += 1;
        }
        Ok(count)
    };
    match rehearsed() {
        Ok(count) => Load::Loads(count),
        Err(Error::Rights { .. }) => Load::Forbidden,
        Err(error) => Load::Refused(error.to_string()),
    }
}

impl Findings {
    /// The conclusion.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match () {
            () if !self.obstacles().is_empty() => Verdict::Impossible,
            () if self.unasked().is_some() => Verdict::Unknown,
            () if !self.limits().is_empty() => Verdict::Limited,
            () => Verdict::Works,
        }
    }

    /// What is known to be in the way, each with its remedy.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        let refusals = features::refusals(self.features.iter().copied(), &self.host.release);
        let mut obstacles: Vec<String> = refusals.map(|error| error.to_string()).collect();
        obstacles.extend(self.pins.clone());
        if let Load::Refused(reason) = &self.load {
            obstacles.push(reason.clone());
        }
        obstacles
    }

    /// Why the kernel could not be asked, where that is so.
    #[must_use]
    pub fn unasked(&self) -> Option<String> {
        if !self.missing_rights.is_empty() {
            let missing = self.missing_rights.join(", ");
            return Some(Error::Rights { missing }.to_string());
        }
        let is_forbidden =
            |found: &Found| found.feature.need == Need::Required && found.state == State::Forbidden;
        let any = self.load == Load::Forbidden || self.features.iter().any(is_forbidden);
        any.then(|| {
            "bpf(2) is refused to this process, whatever its capabilities: a container's seccomp \
             filter or a user namespace does that; run it on the host"
                .to_owned()
        })
    }

    /// What is worse than it could be, and how.
    #[must_use]
    pub fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        for Found { feature, state } in &self.features {
            let is_missing = match feature.probe {
                // Nothing that the other rights include.
                Probe::RawSocket if self.missing_rights.is_empty() => {
                    matches!(state, State::Absent | State::Forbidden)
                }
                _ => *state == State::Absent,
            };
            if let (true, Need::Wanted(without)) = (is_missing, feature.need) {
                limits.push(format!("without {}: {without}", feature.name));
            }
        }
        if let (true, Some(bytes)) = (self.counts_locked_memory(), self.host.locked_memory) {
            limits.push(format!(
                "maps count as locked memory, of which this process may have {} KiB, and a table of \
                 held SYNs needs more: `ulimit -l unlimited`",
                bytes / 1024
            ));
        }
        limits.extend(self.interfaces.iter().filter_map(Examined::limit));
        limits
    }

    /// What is otherwise than elsewhere, or good to know.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for Found { feature, state } in &self.features {
            let is_limit =
                feature.probe == Probe::CgroupMemory && self.host.locked_memory.is_some();
            if let (State::Absent, Need::Replaceable(instead), false) =
                (state, feature.need, is_limit)
            {
                notes.push(format!("without {}: {instead}", feature.name));
            }
        }
        if self.host.no_tcx {
            notes.push(format!("{NO_TCX} is set, so TCX counts as missing"));
        }
        if let Some(lockdown) = self.host.lockdown.as_ref().filter(|mode| *mode != "none") {
            notes.push(format!(
                "the kernel is locked down ({lockdown}): that stops nothing that gate does"
            ));
        }
        notes.push(
            "a SYN that is dropped (`gate drop`, a full table) is sent again by its client: each \
             second from Linux 6.5 on, after 1, 3 and 7 s by older ones"
                .to_owned(),
        );
        notes
    }

    /// How a TC hook is attached to; none where that can't be told, or not be done.
    #[must_use]
    pub fn tc(&self) -> Option<By> {
        match () {
            () if features::has(&self.features, Probe::Tcx) => Some(By::Tcx),
            () if features::has(&self.features, Probe::Clsact) => Some(By::Clsact),
            () => None,
        }
    }

    fn counts_locked_memory(&self) -> bool {
        let is_it = |found: &Found| {
            found.feature.probe == Probe::CgroupMemory && found.state == State::Absent
        };
        self.features.iter().any(is_it)
    }
}

#[cfg(test)]
mod tests;
