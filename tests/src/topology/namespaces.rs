//! Making and entering the namespaces. Each is held by a file descriptor and by nothing else.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::{Place, SCRATCH, lock, wire};

/// The namespaces of one topology.
pub(super) struct Namespaces {
    client: File,
    server: File,
    /// The private mounts, with the machine's own /proc: threads of this process need that one.
    mounts: File,
    /// The same mounts with the process namespace's /proc.
    process_mounts: File,
    processes: File,
    keeper: Mutex<Option<Keeper>>,
}

/// The first process of the process namespace. When it ends, the kernel kills all the others.
///
/// It reads a pipe whose only writer is this process, so it ends with this one, however that ends.
struct Keeper(Child);

impl Keeper {
    /// To be called on a thread whose next child opens a new process namespace.
    fn start() -> Result<Self> {
        let mut command = Command::new("cat");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        // SAFETY: the closure makes system calls and nothing else; their paths are short enough for
        // nix to copy them to the stack. Ignoring a signal runs no handler.
        unsafe {
            command.pre_exec(|| {
                // Orphans become its children; ignored, they are reaped by the kernel.
                signal(Signal::SIGCHLD, SigHandler::SigIgn)?;
                // Only a member of the process namespace can mount the /proc that shows it.
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(
                    Some("proc"),
                    "/proc",
                    Some("proc"),
                    MsFlags::empty(),
                    None::<&str>,
                )?;
                Ok(())
            });
        }
        Ok(Self(command.spawn().context(
            "start cat, the first process of the namespace",
        )?))
    }

    fn namespace(&self, kind: &str) -> Result<File> {
        open(format!("/proc/{}/ns/{kind}", self.0.id()))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Errors can only mean that it has gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Namespaces {
    /// Moves the calling thread into `place`.
    pub(super) fn enter(&self, place: &Place) -> Result<()> {
        self.enter_with(place, &self.mounts)
    }

    /// Moves the calling thread into `place`, and its next children into the process namespace.
    /// Such a thread can start processes, but no threads.
    pub(super) fn enter_as_process(&self, place: &Place) -> Result<()> {
        self.enter_with(place, &self.process_mounts)?;
        setns(&self.processes, CloneFlags::CLONE_NEWPID).context("setns(process namespace)")
    }

    fn enter_with(&self, place: &Place, mounts: &File) -> Result<()> {
        let network = match place {
            Place::Client => &self.client,
            Place::Server => &self.server,
            Place::Other(network) => network,
        };
        // Changing mounts needs a root and a working folder of one's own, and resets them.
        let folder = std::env::current_dir().context("find the working folder")?;
        unshare(CloneFlags::CLONE_FS).context("unshare(CLONE_FS)")?;
        setns(mounts, CloneFlags::CLONE_NEWNS).context("setns(mount namespace)")?;
        std::env::set_current_dir(&folder)
            .with_context(|| format!("change to {}", folder.display()))?;
        setns(network, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("setns(network namespace of the {place})"))
    }

    /// Kills every process of the process namespace.
    pub(super) fn kill(&self) {
        if let Some(keeper) = lock(&self.keeper).as_mut() {
            // An error can only mean that it has gone already.
            let _ = keeper.0.kill();
        }
    }

    /// Waits until the process namespace is empty. Children of this process must be reaped before.
    pub(super) fn reap(&self) {
        drop(lock(&self.keeper).take());
    }
}

/// Makes the namespaces. It moves the calling thread into them, so give it one of its own.
pub(super) fn build() -> Result<Namespaces> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .context("unshare(CLONE_NEWNS | CLONE_NEWPID)")?;
    mount_as("/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let client = new_network()?;
    let server = new_network()?;
    // The thread is in the server's namespace, so this /sys lists the server's interfaces.
    mount_sys()?;
    mount_as(SCRATCH, Some("tmpfs"), MsFlags::empty())?;
    mount_shared_memory()?;
    let mounts = this_thread("mnt")?;
    let keeper = Keeper::start()?;
    let processes = keeper.namespace("pid")?;
    let process_mounts = keeper.namespace("mnt")?;
    wire::connect(&client, &server)?;
    Ok(Namespaces {
        client,
        server,
        mounts,
        process_mounts,
        processes,
        keeper: Some(keeper).into(),
    })
}

/// Moves the thread into a new network namespace and returns a hold on it.
pub(super) fn new_network() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
    this_thread("net")
}

/// Mounts a /sys for the thread's network namespace, with an empty bpffs, and the cgroups kept.
fn mount_sys() -> Result<()> {
    const CGROUPS: &str = "/sys/fs/cgroup";
    const BPF: &str = "/sys/fs/bpf";
    let cgroups = File::open(CGROUPS);
    // The host's would be among the mounts still, out of reach.
    match umount2(BPF, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error).context("detach /sys/fs/bpf"),
    }
    mount_as("/sys", Some("sysfs"), MsFlags::empty())?;
    if let Ok(cgroups) = cgroups {
        let source = format!("/proc/self/fd/{}", cgroups.as_raw_fd());
        mount(
            Some(source.as_str()),
            CGROUPS,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .context("bind /sys/fs/cgroup")?;
    }
    mount_as(BPF, Some("bpf"), MsFlags::empty())
}

/// Mounts what `shm_open` opens. Apache names its segments by the path of its folder, which is the
/// same in every topology, and leaves them behind when it is killed.
fn mount_shared_memory() -> Result<()> {
    const SHARED: &str = "/dev/shm";
    std::fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
    mount_as(SHARED, Some("tmpfs"), MsFlags::empty())
}

/// Mounts a new file system of this kind, or with `None` changes the flags of the mount there is.
fn mount_as(target: &str, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(kind, target, kind, flags, None::<&str>)
        .with_context(|| format!("mount {} at {target}", kind.unwrap_or("nothing new")))
}

fn this_thread(kind: &str) -> Result<File> {
    open(format!("/proc/thread-self/ns/{kind}"))
}

fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    File::open(path).with_context(|| format!("open {}", path.display()))
}
