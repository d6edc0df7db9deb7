//! The BPF object of the programs on packets: loading it, and its programs.

mod steer;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use gate_common::abi::DEFAULT_HELD;

use crate::datapath::UpOptions;
use crate::error::{Error, Result};
use crate::hooks::Slot;
use crate::interfaces::Layer;
use crate::pins::{self, Lock, Pins};
use crate::rights;
use crate::tables::{ARMED, MAPS, Tables, shares};

pub use steer::STEER;
pub(crate) use steer::Steering;

/// The BPF object, as build.rs compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate.bpf.o"));

/// The map of the object's globals, of which there is one: the armed flag.
const GLOBALS: &str = ".bss";

/// The object's programs, loaded as they are needed.
pub(crate) struct Programs {
    folder: PathBuf,
    held: u32,
    armed: bool,
    debug: bool,
    ethernet: Ebpf,
    network: Option<Ebpf>,
}

impl Programs {
    /// Loads the object, and makes the pinned maps where there are none, with the mark that they are
    /// `temporary`.
    pub(crate) fn load(
        pins: &Pins,
        lock: &Lock,
        options: UpOptions,
        temporary: bool,
    ) -> Result<Self> {
        let debug = options.debug;
        let purpose = |armed| Purpose::Attach {
            armed,
            debug,
            layer: Layer::Ethernet,
        };
        let (held, armed, ethernet) = if pins.exist() {
            let tables = Tables::open(pins)?;
            let actual = tables.held_max();
            if let Some(asked) = options.held.filter(|asked| *asked != actual) {
                return Err(Error::OtherSize { actual, asked });
            }
            let armed = tables.is_armed()?;
            (actual, armed, load(&pins.folder(), actual, purpose(armed))?)
        } else {
            let held = options.held.unwrap_or(DEFAULT_HELD);
            let made = pins.create(lock, temporary, |folder| {
                let ebpf = load(folder, held, purpose(false))?;
                shares::furnish(folder, held)?;
                Ok(ebpf)
            })?;
            (held, false, made)
        };
        Ok(Self {
            folder: pins.folder(),
            held,
            armed,
            debug,
            ethernet,
            network: None,
        })
    }

    /// The program for a place on an interface.
    pub(crate) fn get(&mut self, slot: Slot, layer: Layer) -> Result<BorrowedFd<'_>> {
        let ebpf = match layer {
            Layer::Ethernet | Layer::Unknown => &mut self.ethernet,
            Layer::Network => match &mut self.network {
                Some(ebpf) => ebpf,
                none => {
                    let purpose = Purpose::Attach {
                        armed: self.armed,
                        debug: self.debug,
                        layer,
                    };
                    none.insert(load(&self.folder, self.held, purpose)?)
                }
            },
        };
        let name = slot.program();
        let what = format!("program {name}");
        match slot {
            Slot::Xdp => {
                let program: &mut Xdp = program(ebpf, name)?;
                if program.fd().is_err() {
                    loaded(name, program.load())?;
                }
                Ok(program.fd().map_err(Error::aya(what))?.as_fd())
            }
            Slot::TcIngress | Slot::TcEgress => {
                let program: &mut SchedClassifier = program(ebpf, name)?;
                if program.fd().is_err() {
                    loaded(name, program.load())?;
                }
                Ok(program.fd().map_err(Error::aya(what))?.as_fd())
            }
        }
    }
}

/// What the object is loaded for.
#[derive(Clone, Copy)]
enum Purpose {
    /// To be attached, with the debug log or without. Only under the lock.
    Attach {
        armed: bool,
        debug: bool,
        layer: Layer,
    },
    /// To inject.
    Replay,
}

/// Loads the object with its pinned maps in `folder`, where those that are there are
/// reused.
fn load(folder: &Path, held: u32, purpose: Purpose) -> Result<Ebpf> {
    let (armed, debug, layer) = match purpose {
        Purpose::Attach {
            armed,
            debug,
            layer,
        } => (armed, debug, layer),
        Purpose::Replay => (false, false, Layer::Ethernet),
    };
    let level = match debug {
        true => log::Level::Debug as u8,
        false => 0,
    };
    let armed = u64::from(armed);
    let layer3 = u32::from(layer == Layer::Network);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(aya_log::LEVEL, &level, true)
        // Loading writes the globals anew, also into a map that was pinned before.
        .override_global(ARMED, &armed, true)
        .override_global("LAYER3", &layer3, true)
        .map_max_entries("HELD", held)
        .map_max_entries("RELEASED", held);
    let paths: Vec<_> = MAPS
        .iter()
        .map(|name| (*name, folder.join(name)))
        // Injecting needs no armed flag, and without the lock it must not be written.
        .filter(|(name, _)| *name != ARMED || !matches!(purpose, Purpose::Replay))
        .collect();
    for (name, path) in &paths {
        let map = if *name == ARMED { GLOBALS } else { name };
        loader.map_pin_path(map, path.as_path());
    }
    let ebpf = loader.load(OBJECT).map_err(load_error)?;
    for (_, path) in &paths {
        pins::restrict(path)?;
    }
    Ok(ebpf)
}

pub(crate) fn load_error(error: aya::EbpfError) -> Error {
    let code = os_error(&error);
    match (code, Error::aya("load the data path")(error)) {
        (Some(libc::EPERM), _) => rights::refused(),
        (Some(libc::ENOMEM), Error::Aya { text, .. }) => Error::NoMemory { text },
        (_, error) => error,
    }
}

/// What the kernel said, where it said something.
fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

/// Loads the replay program with the pinned maps, private to this process.
pub(crate) fn load_replay(pins: &Pins, held: u32) -> Result<Ebpf> {
    let mut ebpf = load(&pins.folder(), held, Purpose::Replay)?;
    let replay: &mut SchedClassifier = program(&mut ebpf, "gate_replay")?;
    loaded("gate_replay", replay.load())?;
    Ok(ebpf)
}

/// One of the object's programs.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let what = format!("program {name}");
    ebpf.program_mut(name)
        .ok_or_else(|| Error::Aya {
            what: what.clone(),
            text: "it is not in the object".to_owned(),
        })?
        .try_into()
        .map_err(Error::aya(what))
}

/// Tells what the verifier said last, which is why; what it says first is where it began.
pub(crate) fn loaded(name: &str, result: Result<(), ProgramError>) -> Result<()> {
    result.map_err(|error| match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => Error::Aya {
            what: format!("load program {name}"),
            text: refusal(&io_error, &verifier_log.to_string()),
        },
        error => Error::aya(format!("load program {name}"))(error),
    })
}

fn refusal(error: &io::Error, verifier_log: &str) -> String {
    let is_reason = |line: &&str| {
        let is_figure = ["processed ", "stack depth ", "verification time "];
        !line.is_empty() && !is_figure.iter().any(|start| line.starts_with(start))
    };
    match verifier_log.lines().map(str::trim).rfind(is_reason) {
        Some(reason) => format!("{error}: the verifier says: {reason}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_reason_is_told() {
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        let log = "0: R1=ctx() R10=fp0\n; a line of source\n5: (85) call x#7\n\
                   unknown func x#7\nprocessed 5 insns (limit 1000000)\n\n";
        assert_eq!(
            refusal(&denied(), log),
            "Permission denied (os error 13): the verifier says: unknown func x#7"
        );
        assert_eq!(refusal(&denied(), ""), "Permission denied (os error 13)");
    }
}
