//! Loads the data path and attaches it.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::programs::{Program, ProgramError, SchedClassifier, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use gate_common::abi::DEFAULT_HELD;
use gate_common::state::{Closed, Effective};
use nix::sys::utsname::uname;

use crate::clock;
use crate::error::{Error, Result};
use crate::interfaces::{self, Interface, XdpMode};
use crate::pins::{self, Lock, Pins};
use crate::release::{Replayer, release};
use crate::sys;
use crate::tables::{ARMED, MAPS, Tables};

/// The BPF object, as build.rs compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate.bpf.o"));

/// The map of the object's globals, of which there is one: the armed flag.
const GLOBALS: &str = ".bss";

/// Where a program is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookChoice {
    /// Native XDP, but generic on veth.
    Auto,
    /// Native XDP.
    Native,
    /// Generic XDP.
    Generic,
}

/// An attachment, as it really is.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The interface's index.
    pub ifindex: u32,
    /// Its name; none once it is gone.
    pub interface: Option<String>,
    /// The mode; none once it is gone.
    pub mode: Option<XdpMode>,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "xdp",
            Self::Generic => "xdp-generic",
            Self::Offloaded => "xdp-offloaded",
        })
    }
}

/// How [`up`] attaches.
#[derive(Clone, Copy, Debug)]
pub struct UpOptions {
    /// The hook.
    pub hook: HookChoice,
    /// Room for held SYNs; none for the default, or for what is there.
    pub held: Option<u32>,
    /// Whether the data path logs each SYN that it judges.
    pub debug: bool,
}

/// What [`up`] did about one interface.
#[derive(Clone, Debug)]
pub struct Upped {
    /// The interface.
    pub interface: Interface,
    /// The mode that it is attached in.
    pub mode: XdpMode,
    /// Whether it was attached before.
    pub already: bool,
}

/// Attaches the data path to interfaces: to all of them, or to none.
///
/// # Errors
/// Anything that is in the way; nothing is changed then.
pub fn up(pins: &Pins, names: &[String], options: UpOptions) -> Result<Vec<Upped>> {
    let mut targets = Vec::new();
    for name in names.iter().collect::<BTreeSet<_>>() {
        let interface = interfaces::by_name(name)?;
        let mode = choose(options.hook, &interface)?;
        targets.push((interface, mode));
    }
    let lock = pins.lock_or_create()?;
    let was_up = pins.exist();
    let outcome = pins
        .check_version()
        .and_then(|()| up_locked(pins, &lock, targets, options));
    if outcome.is_err() && !was_up {
        pins.remove(lock)?;
    }
    outcome
}

fn up_locked(
    pins: &Pins,
    lock: &Lock,
    targets: Vec<(Interface, XdpMode)>,
    options: UpOptions,
) -> Result<Vec<Upped>> {
    let held = options.held.unwrap_or(DEFAULT_HELD);
    let debug = options.debug;
    let before = attachments(pins)?;
    if !before.is_empty()
        && before
            .iter()
            .all(|attachment| attachment.interface.is_none())
    {
        // All its interfaces are gone, or it was another namespace with the same number: what
        // is held there has no way back.
        pins.clear(lock)?;
    }
    let mut ebpf = if pins.exist() {
        let tables = Tables::open(pins)?;
        let actual = tables.held_max();
        match options.held {
            Some(asked) if asked != actual => return Err(Error::OtherSize { actual, asked }),
            _ => {
                let armed = tables.is_armed()?;
                load(&pins.folder(), actual, Purpose::Attach { armed, debug })?
            }
        }
    } else {
        let purpose = Purpose::Attach {
            armed: false,
            debug,
        };
        pins.create(lock, |folder| load(folder, held, purpose))?
    };
    let program = load_xdp(&mut ebpf)?;
    let mut done = Vec::new();
    for (interface, mode) in targets {
        match attach(pins, program, &interface, mode, options.hook) {
            Ok(attached) => done.push(attached),
            Err(error) => {
                let fresh = done.iter().filter(|upped| !upped.already);
                for path in fresh.map(|upped| pins.link(upped.interface.index)) {
                    pins::remove_link(&path)?;
                }
                return Err(error);
            }
        }
    }
    // Nothing can be in the way any more: the programs that were there follow.
    for upped in done.iter().filter(|upped| upped.already) {
        update(pins, program, &upped.interface)?;
    }
    Ok(done)
}

/// The mode for an interface.
fn choose(hook: HookChoice, interface: &Interface) -> Result<XdpMode> {
    if interface.is_loopback {
        return Err(Error::Loopback {
            name: interface.name.clone(),
        });
    }
    Ok(match hook {
        HookChoice::Native => XdpMode::Native,
        HookChoice::Generic => XdpMode::Generic,
        // Native XDP on veth switches off its peer's segmentation offload, and a RST that it
        // sends reaches only a peer that has an XDP program itself.
        HookChoice::Auto if interface.is_veth => XdpMode::Generic,
        HookChoice::Auto => XdpMode::Native,
    })
}

/// What the object is loaded for.
#[derive(Clone, Copy)]
enum Purpose {
    /// To be attached, with the debug log or without. Only under the lock.
    Attach { armed: bool, debug: bool },
    /// To inject.
    Replay,
}

/// Loads the object with its pinned maps in `folder`, where those that are there are
/// reused.
fn load(folder: &Path, held: u32, purpose: Purpose) -> Result<Ebpf> {
    let (armed, level) = match purpose {
        Purpose::Attach { armed, debug: true } => (armed, log::Level::Debug as u8),
        Purpose::Attach {
            armed,
            debug: false,
        } => (armed, 0),
        Purpose::Replay => (false, 0),
    };
    let armed = u64::from(armed);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(aya_log::LEVEL, &level, true)
        // Loading writes the globals anew, also into a map that was pinned before.
        .override_global(ARMED, &armed, true)
        .map_max_entries("HELD", held)
        .map_max_entries("RELEASED", held);
    let paths: Vec<_> = MAPS
        .iter()
        .map(|(name, _, _)| (*name, folder.join(name)))
        // Injecting needs no armed flag, and without the lock it must not be written.
        .filter(|(name, _)| *name != ARMED || !matches!(purpose, Purpose::Replay))
        .collect();
    for (name, path) in &paths {
        let map = if *name == ARMED { GLOBALS } else { name };
        loader.map_pin_path(map, path.as_path());
    }
    let ebpf = loader.load(OBJECT).map_err(load_error)?;
    for (_, path) in &paths {
        restrict(path)?;
    }
    Ok(ebpf)
}

fn load_error(error: aya::EbpfError) -> Error {
    match rights_lost(&error) {
        true => Error::Rights {
            missing: "CAP_BPF, CAP_NET_ADMIN".to_owned(),
        },
        false => Error::aya("load the data path")(error),
    }
}

fn rights_lost(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error() == Some(libc::EPERM);
        }
        next = error.source();
    }
    false
}

/// A pin that others can open lets them write the map.
fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(Error::call("chmod", path.display().to_string()))
}

/// Loads the replay program with the pinned maps, private to this process.
pub(crate) fn load_replay(pins: &Pins, held: u32) -> Result<Ebpf> {
    let mut ebpf = load(&pins.folder(), held, Purpose::Replay)?;
    let replay: &mut SchedClassifier = program(&mut ebpf, "gate_replay")?;
    loaded("gate_replay", replay.load())?;
    Ok(ebpf)
}

/// Loads the program that is attached.
fn load_xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program: &mut Xdp = program(ebpf, "gate_xdp")?;
    loaded("gate_xdp", program.load())?;
    Ok(program)
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

/// Tells a kernel that is too old for a program from other failures to load it.
fn loaded(name: &str, result: Result<(), ProgramError>) -> Result<()> {
    match result {
        Err(ProgramError::LoadError { verifier_log, .. })
            if verifier_log.to_string().contains("invalid func")
                || verifier_log.to_string().contains("unknown func") =>
        {
            Err(kernel("bpf_xdp_load_bytes", "5.18"))
        }
        result => result.map_err(Error::aya(format!("load program {name}"))),
    }
}

/// The error of a kernel without a feature.
pub(crate) fn kernel(feature: &'static str, since: &'static str) -> Error {
    let release = uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    Error::Kernel {
        release,
        feature,
        since,
    }
}

fn attach(
    pins: &Pins,
    program: &Xdp,
    interface: &Interface,
    mode: XdpMode,
    hook: HookChoice,
) -> Result<Upped> {
    let fd = program.fd().map_err(Error::aya("program gate_xdp"))?;
    let path = pins.link(interface.index);
    if live_link(&path, interface.index)?.is_some() {
        let actual = interface.xdp.map_or(mode, |(mode, _)| mode);
        if hook != HookChoice::Auto && actual != mode {
            return Err(Error::OtherHook {
                interface: interface.name.clone(),
                actual: actual.to_string(),
                asked: mode.to_string(),
            });
        }
        return Ok(Upped {
            interface: interface.clone(),
            mode: actual,
            already: true,
        });
    }
    let flags = match mode {
        XdpMode::Native => aya_obj::generated::XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => aya_obj::generated::XDP_FLAGS_SKB_MODE,
        XdpMode::Offloaded => aya_obj::generated::XDP_FLAGS_HW_MODE,
    };
    let link = sys::attach_xdp(fd.as_fd(), interface.index, flags)
        .map_err(|error| attach_error(error, interface, mode))?;
    sys::pin(link.as_fd(), &path).map_err(Error::call("pin", path.display().to_string()))?;
    restrict(&path)?;
    Ok(Upped {
        interface: interface.clone(),
        mode,
        already: false,
    })
}

/// Puts the program behind a link that was there: the same, or a newer one. The switch is
/// atomic.
fn update(pins: &Pins, program: &Xdp, interface: &Interface) -> Result<()> {
    let fd = program.fd().map_err(Error::aya("program gate_xdp"))?;
    let path = pins.link(interface.index);
    let link = sys::open_pin(&path).map_err(Error::call("open pin", path.display().to_string()))?;
    sys::update_link(link.as_fd(), fd.as_fd())
        .map_err(Error::call("bpf link update on", interface.name.as_str()))
}

/// The pinned link, if its interface is still there. A defunct pin is removed.
fn live_link(path: &Path, ifindex: u32) -> Result<Option<OwnedFd>> {
    let link = match sys::open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::call("open pin", path.display().to_string())(error)),
    };
    let info = sys::xdp_link(link.as_fd())
        .map_err(Error::call("bpf link info of", path.display().to_string()))?;
    if info.ifindex == ifindex {
        return Ok(Some(link));
    }
    std::fs::remove_file(path).map_err(Error::call("remove", path.display().to_string()))?;
    Ok(None)
}

fn attach_error(error: io::Error, interface: &Interface, mode: XdpMode) -> Error {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            // Asked anew: the program may have come since the interface was looked up.
            let id = interfaces::by_name(&interface.name)
                .ok()
                .and_then(|interface| interface.xdp)
                .map_or(0, |(_, id)| id);
            Error::HookTaken {
                interface: interface.name.clone(),
                program: program_name(id),
                id,
            }
        }
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOMEM | libc::E2BIG)
            if mode == XdpMode::Native =>
        {
            Error::NoNativeXdp {
                interface: interface.name.clone(),
                cause: error,
            }
        }
        _ => Error::call("attach XDP to", interface.name.as_str())(error),
    }
}

fn program_name(id: u32) -> String {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "without a name".to_owned())
}

/// The pinned attachments of this namespace.
///
/// # Errors
/// Those of the kernel.
pub fn attachments(pins: &Pins) -> Result<Vec<Attachment>> {
    let interfaces = interfaces::list()?;
    let mut attachments = Vec::new();
    for path in pins::entries(&pins.links()) {
        let link =
            sys::open_pin(&path).map_err(Error::call("open pin", path.display().to_string()))?;
        let info = sys::xdp_link(link.as_fd())
            .map_err(Error::call("bpf link info of", path.display().to_string()))?;
        let pinned = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let interface = interfaces
            .iter()
            .find(|interface| interface.index == info.ifindex);
        attachments.push(Attachment {
            ifindex: pinned.unwrap_or(info.ifindex),
            interface: interface.map(|interface| interface.name.clone()),
            mode: interface.and_then(|interface| interface.xdp.map(|(mode, _)| mode)),
        });
    }
    attachments.sort_by_key(|attachment| attachment.ifindex);
    Ok(attachments)
}

/// Fails where nothing is attached, so that closing a gate would be a lie.
///
/// # Errors
/// [`Error::NotUp`].
pub fn check_attached(pins: &Pins) -> Result<()> {
    let live = attachments(pins)?
        .iter()
        .any(|attachment| attachment.interface.is_some());
    if live { Ok(()) } else { Err(Error::NotUp) }
}

/// The program id behind some attachment, for reading its log.
///
/// # Errors
/// [`Error::NotUp`].
pub fn program_id(pins: &Pins) -> Result<u32> {
    for path in pins::entries(&pins.links()) {
        let link =
            sys::open_pin(&path).map_err(Error::call("open pin", path.display().to_string()))?;
        if let Ok(info) = sys::xdp_link(link.as_fd()) {
            return Ok(info.program);
        }
    }
    Err(Error::NotUp)
}

/// Releases what all gates hold; returns how many SYNs that were.
fn release_all(pins: &Pins, lock: &Lock, tables: &mut Tables) -> Result<usize> {
    let now = clock::now();
    let mut holding = BTreeSet::new();
    for gate in tables.endpoints()?.into_values() {
        if tables.state(gate)?.at(|| now) == Effective::Closed(Closed::Hold) {
            holding.insert(gate);
        }
    }
    if holding.is_empty() {
        return Ok(0);
    }
    let mut replayer = Replayer::load(pins, lock)?;
    Ok(release(lock, tables, &mut replayer, &holding)?.injected)
}

/// What [`down`] did.
#[derive(Clone, Debug, Default)]
pub struct Downed {
    /// The interfaces that were detached.
    pub interfaces: Vec<String>,
    /// The SYNs that were still held, and are released.
    pub released: usize,
    /// Why they could not be released, where that is so.
    pub failure: Option<String>,
}

/// Opens every gate, detaches, and removes every pin of this namespace, those of other
/// versions included.
///
/// # Errors
/// Those of the file system and the kernel.
pub fn down(pins: &Pins) -> Result<Option<Downed>> {
    if !pins.leave_traces() {
        return Ok(None);
    }
    let lock = pins.lock_or_create()?;
    let mut downed = Downed::default();
    // Pins that this version can't read hold nothing that it could release; and whatever goes
    // wrong with a release, detaching opens every gate.
    match Tables::open(pins).and_then(|mut tables| release_all(pins, &lock, &mut tables)) {
        Ok(released) => downed.released = released,
        Err(Error::NotUp | Error::OtherAbi { .. }) => {}
        Err(error) => downed.failure = Some(error.to_string()),
    }
    downed.interfaces = attachments(pins)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|attachment| attachment.interface)
        .collect();
    pins.remove_other_versions(&lock)?;
    pins.remove(lock)?;
    Ok(Some(downed))
}
