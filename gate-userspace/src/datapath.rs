//! Attaches the data path, and takes it away again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gate_common::flow::GateId;
use gate_common::state::{Closed, Effective, StateWord};

use crate::attach::{self, Attachment, By};
use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::features;
use crate::hooks::{self, Hook, HookChoice, Slot};
use crate::interfaces::{self, Interface};
use crate::object::Programs;
use crate::pins::{self, Lock, Pins};
use crate::reach;
use crate::release::{Job, Pace, Release, Replayer, Step, release_at_once};
use crate::steering;
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

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

/// How long attachments are to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    UntilDown,
    UntilRestartsEnd,
}

/// What [`up`] did about one interface.
#[derive(Clone, Debug)]
pub struct Upped {
    /// The interface.
    pub interface: Interface,
    /// Its hooks, and how each is attached.
    pub hooks: Vec<(Hook, By)>,
    /// Whether all of them were attached before.
    pub already: bool,
    /// Why they are not what one would expect.
    pub reason: Option<String>,
}

/// Attaches the data path to interfaces: to all of them, or to none.
///
/// # Errors
/// Anything that is in the way; nothing is changed then.
pub fn up(pins: &Pins, names: &[String], options: UpOptions) -> Result<Vec<Upped>> {
    let interfaces = interfaces::list()?;
    let mut targets = Vec::new();
    for name in names.iter().collect::<BTreeSet<_>>() {
        let interface = interfaces::named(&interfaces, name)?;
        // What can't be is told before anything is touched.
        hooks::plan(options.hook, interface, &interfaces, None)?;
        targets.push((interface.clone(), options.hook));
    }
    let lock = pins.lock_or_create()?;
    let upped = up_locked(pins, &lock, &targets, options);
    match upped {
        Ok(upped) => {
            // Whoever asks for it by name wants it to stay.
            pins::remove(&pins.temporary())?;
            Ok(upped)
        }
        Err((error, was_up)) => {
            if !was_up {
                pins.remove(lock)?;
            }
            Err(error)
        }
    }
}

/// As [`up`], under the lock. A failure comes with whether anything was pinned before.
pub(crate) fn up_locked(
    pins: &Pins,
    lock: &Lock,
    targets: &[(Interface, HookChoice)],
    options: UpOptions,
) -> Result<Vec<Upped>, (Error, bool)> {
    let was_up = pins.exist();
    pins.check_version()
        .and_then(|()| attach_all(pins, lock, targets, options, Stay::UntilDown))
        .map_err(|error| (error, was_up))
}

/// Attaches to interfaces, to all of them or to none, and makes the maps where there are none.
///
/// # Errors
/// Anything that is in the way; of the attachments nothing is left then.
pub(crate) fn attach_to(
    pins: &Pins,
    lock: &Lock,
    targets: &[(Interface, HookChoice)],
    held: Option<u32>,
) -> Result<Vec<Upped>> {
    let options = UpOptions {
        hook: HookChoice::Auto,
        held,
        debug: false,
    };
    attach_all(pins, lock, targets, options, Stay::UntilDown)
}

fn attach_all(
    pins: &Pins,
    lock: &Lock,
    targets: &[(Interface, HookChoice)],
    options: UpOptions,
    stay: Stay,
) -> Result<Vec<Upped>> {
    features::require()?;
    let (before, lost) = repair(pins, lock)?;
    let temporary = stay == Stay::UntilRestartsEnd;
    let mut programs = Programs::load(pins, lock, options, temporary)?;
    if temporary {
        // Before the first link: whoever dies here leaves nothing that looks as if it were to stay.
        pins::make_folder(&pins.temporary())?;
    }
    let qdiscs = pins::entries(&pins.qdiscs());
    let interfaces = interfaces::list()?;
    let mut done: Vec<Upped> = Vec::new();
    let mut fresh = Vec::new();
    for (interface, choice) in targets {
        let of_interface = before
            .iter()
            .filter(|attachment| attachment.ifindex == interface.index);
        let there: Vec<&Attachment> = of_interface.collect();
        let attached = attach_one(
            pins,
            &mut programs,
            (interface, &interfaces),
            *choice,
            (&there, &lost),
            &mut fresh,
        );
        match attached {
            Ok(upped) => done.push(upped),
            Err(error) => {
                // The first failure counts.
                for path in fresh {
                    let _second = attach::detach(&path);
                }
                let _second = attach::remove_qdiscs(&pins.folder(), &qdiscs);
                return Err(error);
            }
        }
    }
    // Nothing can be in the way any more: the programs that were there follow.
    for (interface, _) in targets {
        let there = before
            .iter()
            .filter(|attachment| attachment.ifindex == interface.index);
        for attachment in there {
            let program = programs.get(attachment.slot, interface.layer)?;
            attach::update(attachment, program)?;
        }
    }
    Ok(done)
}

/// Attaches by TC wherever connections to these endpoints go, where nothing is attached or where
/// an earlier restart did the same; [`detach_temporary`] takes that back. Returns what was done.
///
/// # Errors
/// Anything that is in the way; nothing is changed then.
pub fn attach_temporarily(pins: &Pins, lock: &Lock, endpoints: &[Endpoint]) -> Result<Vec<Upped>> {
    let is_up = attach::attachments(pins)?.iter().any(Attachment::is_live);
    if is_up && !pins.temporary().exists() {
        return Ok(Vec::new());
    }
    let was_up = pins.exist();
    let was_marked = pins.temporary().exists();
    let options = UpOptions {
        hook: HookChoice::Tc,
        held: None,
        debug: false,
    };
    let mut tries = 0;
    loop {
        let targets = reach::reach(pins, endpoints, &interfaces::list()?)?;
        let attached = attach_all(pins, lock, &targets, options, Stay::UntilRestartsEnd);
        let Err(error) = attached else {
            return attached;
        };
        if !was_up {
            pins.clear(lock)?;
        } else if !was_marked {
            pins::remove(&pins.temporary())?;
        }
        // Containers come and go: one that went just now is no reason to give up.
        tries += 1;
        if tries == TRIES || !has_vanished(&targets)? {
            return Err(error);
        }
    }
}

/// How often a restart attaches anew because an interface vanished meanwhile.
const TRIES: usize = 20;

fn has_vanished(targets: &[(Interface, HookChoice)]) -> Result<bool> {
    let all = interfaces::list()?;
    let is_there = |target: &Interface| all.iter().any(|it| it.index == target.index);
    Ok(!targets.iter().all(|(target, _)| is_there(target)))
}

/// Detaches what restarts attached, once none of them is under way and no gate is closed or guarded
/// any more.
///
/// # Errors
/// Those of the kernel and the file system.
pub fn detach_temporary(pins: &Pins, lock: Lock) -> Result<()> {
    if !pins.temporary().exists() || pins.has_restarts(&lock)? {
        return Ok(());
    }
    let tables = Tables::open(pins)?;
    let now = clock::now();
    if tables.any_active(now)? {
        return Ok(());
    }
    let is_needed = match Handovers::open(pins)? {
        Some(handovers) => !handovers.gates()?.is_empty(),
        None => false,
    };
    if pins.names().is_empty() && !is_needed {
        return down_locked(pins, lock).map(drop);
    }
    pins.keep_definitions(&lock)
}

/// Makes the maps where there are none, and attaches nothing.
///
/// # Errors
/// Those of loading; nothing is left then.
pub fn prepare(pins: &Pins, lock: &Lock) -> Result<()> {
    pins.check_version()?;
    if pins.exist() {
        return Ok(());
    }
    let options = UpOptions {
        hook: HookChoice::Auto,
        held: None,
        debug: false,
    };
    attach_all(pins, lock, &[], options, Stay::UntilDown).map(drop)
}

/// Removes the attachments that see nothing any more, because their interface was deleted or moved,
/// or their program detached by others, and what is held from there: it has no way back. Returns
/// those that are live, and those that were removed.
fn repair(pins: &Pins, lock: &Lock) -> Result<(Vec<Attachment>, Vec<Attachment>)> {
    if !pins.exist() {
        return Ok((Vec::new(), Vec::new()));
    }
    let (live, dead): (Vec<_>, Vec<_>) = attach::attachments(pins)?
        .into_iter()
        .partition(Attachment::is_live);
    let is_gone = |attachment: &Attachment| attachment.interface.is_none();
    // A link to the look-up of listeners that lives proves that it is this namespace.
    let is_this = steering::has_lookup(pins);
    if live.is_empty() && !dead.is_empty() && dead.iter().all(is_gone) && !is_this {
        // Or it was another namespace with the same number: its gates mean nothing here.
        pins.clear(lock)?;
        return Ok((live, dead));
    }
    attach::forget_lost_qdiscs(&pins.folder())?;
    for attachment in &dead {
        attach::detach(attachment.pin())?;
    }
    if !dead.is_empty() {
        let live = live.iter().map(|attachment| attachment.ifindex).collect();
        Tables::open(pins)?.forget_elsewhere(lock, &live)?;
    }
    Ok((live, dead))
}

/// Attaches to one interface what is not there; `fresh` gets the pins of what is new. `lost` are all
/// attachments that were there no more.
fn attach_one(
    pins: &Pins,
    programs: &mut Programs,
    (interface, all): (&Interface, &[Interface]),
    choice: HookChoice,
    (there, lost): (&[&Attachment], &[Attachment]),
    fresh: &mut Vec<PathBuf>,
) -> Result<Upped> {
    let mut upped = Upped {
        interface: interface.clone(),
        hooks: Vec::new(),
        already: true,
        reason: None,
    };
    let (mut hooks, fallback) = if choice == HookChoice::Auto && !there.is_empty() {
        // What is there stays as it was asked for, and what others detached comes back.
        let kept = |attachment: &&Attachment| Some((attachment.hook?, attachment.by));
        upped.hooks = there.iter().filter_map(kept).collect();
        let again = lost
            .iter()
            .filter(|attachment| attachment.ifindex == interface.index)
            .filter_map(|attachment| match attachment.slot {
                Slot::Xdp => None,
                slot => Some(Hook::Tc(slot.direction())),
            });
        (again.collect(), None)
    } else {
        let own = |id: u32| there.iter().any(|attachment| attachment.program == id);
        let foreign = interface.xdp.filter(|(_, id)| !own(*id)).map(|(_, id)| {
            let name = attach::program_name(id);
            format!("{name} (id {id})")
        });
        let plan = hooks::plan(choice, interface, all, foreign.as_deref())?;
        upped.reason = plan.reason;
        (VecDeque::from(plan.hooks), plan.fallback)
    };
    while let Some(hook) = hooks.pop_front() {
        if let Some(kept) = already(interface, hook, there)? {
            upped.hooks.push(kept);
            continue;
        }
        let program = programs.get(hook.slot(), interface.layer)?;
        match (attach::attach(pins, program, interface, hook), &fallback) {
            (Ok(by), _) => {
                upped.already = false;
                upped.hooks.push((hook, by));
                fresh.push(match by {
                    By::Xdp | By::Tcx => pins.link(interface.index, hook.slot()),
                    By::Clsact => pins.filter(interface.index, hook.slot()),
                });
            }
            (Err(Error::NoNativeXdp { why, .. }), Some(fallback)) => {
                upped.reason = Some(why);
                hooks = fallback.iter().copied().collect();
            }
            (Err(Error::HookTaken { program, id, .. }), Some(fallback)) => {
                let reason = format!("another XDP program is there, {program} (id {id})");
                upped.reason = Some(reason);
                hooks = fallback.iter().copied().collect();
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(upped)
}

/// The attachment that is in the hook's place already.
///
/// # Errors
/// [`Error::OtherHook`] where another sees the same packets.
fn already(interface: &Interface, hook: Hook, there: &[&Attachment]) -> Result<Option<(Hook, By)>> {
    let same_way = there
        .iter()
        .find(|attachment| attachment.slot.direction() == hook.slot().direction());
    match same_way.and_then(|attachment| Some((attachment.hook?, attachment.by))) {
        Some((actual, by)) if actual == hook => Ok(Some((actual, by))),
        Some((actual, _)) => Err(Error::OtherHook {
            interface: interface.name.clone(),
            actual: actual.to_string(),
            asked: hook.to_string(),
        }),
        None => Ok(None),
    }
}

/// What is attached and sees packets. Fails where nothing does, so that closing a gate would be a lie.
///
/// # Errors
/// [`Error::NotUp`].
pub fn live(pins: &Pins) -> Result<Vec<Attachment>> {
    let mut attachments = attach::attachments(pins)?;
    attachments.retain(Attachment::is_live);
    match attachments.is_empty() {
        true => Err(Error::NotUp),
        false => Ok(attachments),
    }
}

/// The program id behind some attachment, for reading its log.
///
/// # Errors
/// [`Error::NotUp`], [`Error::OtherAbi`].
pub fn program_id(pins: &Pins) -> Result<u32> {
    if let Some(first) = attach::attachments(pins)?.first() {
        return Ok(first.program);
    }
    pins.check_version()?;
    Err(Error::NotUp)
}

/// How long `gate down` waits for room in the listeners' accept queues.
const DOWN_PATIENCE: Duration = Duration::from_secs(5);

/// The gates that hold because they are closed or guarded, with their words. They are guarded no
/// more.
fn holding(lock: &Lock, tables: &mut Tables) -> Result<BTreeMap<GateId, StateWord>> {
    let now = clock::now();
    tables.settle(lock, now)?;
    let mut holding = BTreeMap::new();
    for gate in tables.endpoints()?.into_values() {
        let word = tables.state(gate)?;
        if word.is_guarded() {
            tables.unguard(lock, gate, now)?;
        }
        if word.is_guarded() || word.at(|| now) == Effective::Closed(Closed::Hold) {
            holding.insert(gate, word.guarded(false));
        }
    }
    Ok(holding)
}

/// Releases what all gates hold, as their listeners take it; returns how many SYNs that were.
fn release_all(pins: &Pins) -> Result<usize> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let gates = holding(&lock, &mut tables)?;
    if gates.is_empty() {
        return Ok(0);
    }
    let mut replayer = Replayer::load(pins, &lock)?;
    drop(lock);
    let mut release = Release::new(pins, Job::Open(gates), Pace::default());
    let started = Instant::now();
    loop {
        match release.step(&mut tables, &mut replayer)? {
            Step::Done(released) => return Ok(released.injected),
            Step::Wait(pause) => std::thread::sleep(pause),
        }
        if started.elapsed() >= DOWN_PATIENCE {
            release.hurry();
        }
    }
}

/// Releases what all gates hold still, at once; returns how many SYNs that were.
fn release_rest(pins: &Pins, lock: &Lock, tables: &mut Tables) -> Result<usize> {
    let gates = holding(lock, tables)?;
    if gates.is_empty() {
        return Ok(0);
    }
    let mut replayer = Replayer::load(pins, lock)?;
    Ok(release_at_once(pins, lock, tables, &mut replayer, gates)?.injected)
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
        let interfaces = attach::remove_all_orphans(pins)?;
        return Ok((!interfaces.is_empty()).then_some(Downed {
            interfaces,
            ..Downed::default()
        }));
    }
    // Whatever goes wrong here is met again below.
    let released = release_all(pins).unwrap_or_default();
    let lock = pins.lock_or_create()?;
    let mut downed = down_locked(pins, lock)?;
    downed.released += released;
    Ok(Some(downed))
}

/// As [`down`], under the lock.
pub(crate) fn down_locked(pins: &Pins, lock: Lock) -> Result<Downed> {
    let mut downed = Downed::default();
    let others = pins.of_other_versions();
    // Whatever goes wrong with a release, detaching opens every gate.
    match Tables::open(pins).and_then(|mut tables| release_rest(pins, &lock, &mut tables)) {
        Ok(released) => downed.released = released,
        Err(Error::NotUp) => {}
        Err(Error::OtherAbi { found, .. }) => {
            downed.failure = Some(format!("another version of gate held them (maps {found})"));
        }
        Err(error) => downed.failure = Some(error.to_string()),
    }
    let attached: BTreeSet<(u32, String)> = [pins.folder()]
        .iter()
        .chain(&others)
        .flat_map(|folder| attach::attachments_of(folder).unwrap_or_default())
        .filter(Attachment::is_live)
        .filter_map(|attachment| Some((attachment.ifindex, attachment.interface?)))
        .collect();
    downed.interfaces = attached.into_iter().map(|(_, name)| name).collect();
    pins.remove_other_versions(&lock)?;
    pins.clear(&lock)?;
    downed.interfaces.extend(attach::remove_all_orphans(pins)?);
    pins.remove(lock)?;
    Ok(downed)
}
