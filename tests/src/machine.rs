//! A machine of its own on this one: systemd as the first process, over a copy of the file system
//! that lives in memory.
//!
//! ```text
//! /            an overlay: this machine's files below, a tmpfs above; nothing is changed below
//! /run, /tmp   empty, in memory
//! /sys/fs/bpf  a bpffs of its own
//! ```
//!
//! It has process, network, mount, control group, IPC and host name spaces of its own, and `lo`. All
//! goes when [`Machine`] is dropped, and also when this process is killed, but for an empty control
//! group, which the next one removes.

use std::fs::{self, File};
use std::io::Read as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// How long systemd may take to start.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// How long a command may take, in seconds; a second later it is killed.
const COMMAND_LIMIT: &str = "90";

/// What the control groups of machines are called, before the number of their process.
const GROUP: &str = "gate-machine-";

/// Makes the file system and starts systemd in it; `$1` is an empty folder. Nothing is started but
/// the journal, and no setting of the kernel's can be changed.
const BOOT: &str = r#"
set -e
root=$1/root
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/run/host"
for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for folder in etc lib; do
    rm -f "$root/$folder"/systemd/system/*.wants/*
done
ln -s /lib/systemd/system/systemd-journald.service "$root/lib/systemd/system/sysinit.target.wants/"
rm -f "$root/etc/fstab" "$root/etc/machine-id" "$root/usr/sbin/policy-rc.d"
: > "$root/etc/machine-id"
# The kernel's audit is one for all machines.
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nAudit=\n' > "$root/etc/systemd/journald.conf.d/machine.conf"
ln -s /dev/null "$root/etc/systemd/system/systemd-journald-audit.socket"
rm -rf "$root/var/log/journal"
shift
while [ $# -gt 0 ]; do
    mkdir -p "$(dirname "$root$2")"
    touch "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
ip link set lo up
cd "$root"
mkdir .below
pivot_root . .below
umount -l /.below
rmdir /.below
exec env -i container=gate PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target
"#;

/// One of them, with systemd running.
pub struct Machine {
    unshare: Child,
    init: u32,
    folder: PathBuf,
    group: PathBuf,
}

/// What a command in a machine printed, and how it ended.
#[derive(Debug)]
pub struct Printed {
    /// On stdout and stderr, in the order in which it came.
    pub text: String,
    /// The exit code; none where a signal ended it.
    pub code: Option<i32>,
}

impl Machine {
    /// Boots one that also has these files of this machine, each at its place. Needs root, systemd and
    /// cgroup v2.
    pub fn boot(files: &[(&Path, &str)]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{GROUP}{}-{number}", std::process::id());
        let group = cgroup2()?.join(&name);
        remove_old(&cgroup2()?);
        fs::create_dir(&group).with_context(|| format!("create {}", group.display()))?;
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let join = format!(
            "echo $$ > '{}/cgroup.procs' && exec \"$@\"",
            group.display()
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &join, "sh", "setpriv", "--pdeathsig=KILL"])
            .args([
                "unshare",
                "-C",
                "-m",
                "-n",
                "-u",
                "-i",
                "-p",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "-c", BOOT, "sh"])
            .arg(&folder)
            .args(
                files
                    .iter()
                    .flat_map(|(from, to)| [from.as_os_str(), to.as_ref()]),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let unshare = command.spawn().context("start unshare")?;
        let mut machine = Self {
            unshare,
            init: 0,
            folder,
            group,
        };
        machine.wait_for_boot()?;
        Ok(machine)
    }

    fn wait_for_boot(&mut self) -> Result<()> {
        let id = self.unshare.id();
        let late = Instant::now() + BOOT_LIMIT;
        loop {
            if let Some(status) = self.unshare.try_wait().context("wait for unshare")? {
                let mut said = String::new();
                if let Some(mut stderr) = self.unshare.stderr.take() {
                    stderr.read_to_string(&mut said).context("read stderr")?;
                }
                bail!("no machine came up ({status}): {}", said.trim());
            }
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
            let child = children.ok().and_then(|text| text.trim().parse().ok());
            if let Some(child) = child.filter(|child| is_systemd(*child)) {
                self.init = child;
                // It says "starting" until its target is reached.
                let state = self.run("systemctl is-system-running")?.text;
                if ["running", "degraded"].contains(&state.trim()) {
                    return Ok(());
                }
            }
            if Instant::now() > late {
                bail!("systemd did not start within {BOOT_LIMIT:?}");
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Starts a shell line as root inside.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--target", &self.init.to_string()])
            .args([
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL=C.UTF-8",
            ])
            .args(["timeout", "-k", "1", COMMAND_LIMIT, "sh", "-c"])
            .arg(format!("exec 2>&1; cd /; {line}"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell line as root inside, to its end.
    pub fn run(&self, line: &str) -> Result<Printed> {
        let output = self.command(line).output().context("run nsenter")?;
        Ok(Printed {
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            code: output.status.code(),
        })
    }

    /// Runs `f` on a new thread in the machine's network, with this machine's files.
    pub fn in_network<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/proc/{}/ns/net", self.init);
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let network = File::open(&path).with_context(|| format!("open {path}"))?;
                    setns(network, CloneFlags::CLONE_NEWNET).context("setns")?;
                    f()
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// As [`run`](Self::run), and it must exit with 0.
    pub fn ok(&self, line: &str) -> Result<String> {
        let printed = self.run(line)?;
        match printed.code {
            Some(0) => Ok(printed.text),
            _ => bail!("{line}: {:?}: {}", printed.code, printed.text),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its child is the first process, and goes with it; errors can only mean that it has gone.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let late = Instant::now() + BOOT_LIMIT;
        while Path::new(&format!("/proc/{}/ns", self.init)).exists() && Instant::now() < late {
            sleep(Duration::from_millis(5));
        }
        remove_group(&self.group);
        let _ = fs::remove_dir(&self.folder);
    }
}

fn is_systemd(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name == "systemd\n")
}

/// Where cgroup v2 is mounted, alone or beside v1.
fn cgroup2() -> Result<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC))
        .context("no cgroup v2 hierarchy is mounted")
}

/// Removes the groups of machines whose process is gone.
fn remove_old(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(GROUP)
            .and_then(|rest| rest.split('-').next());
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            remove_group(&entry.path());
        }
    }
}

/// Removes a control group with those in it. One that has processes stays.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
