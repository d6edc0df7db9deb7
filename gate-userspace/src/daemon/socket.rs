//! The API's socket: made for root and one group, and by one daemon at a time.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Group;
use tokio::net::UnixListener;

use super::error::DaemonError;

/// The socket, for as long as this daemon runs.
pub(super) struct Socket {
    path: PathBuf,
    /// The group that may use it.
    pub group: Option<u32>,
    _lock: Flock<File>,
}

impl Socket {
    /// Makes the socket. One that a killed daemon left is replaced.
    pub(super) fn bind(path: &Path, group: &str) -> Result<(Self, UnixListener), DaemonError> {
        let failed = |source| DaemonError::Socket {
            path: path.into(),
            source,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // Whoever has this lock is the daemon; the socket alone can't tell a dead one's.
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(DaemonError::NoSocket { path: path.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = bind(path).map_err(failed)?;
        let known = Group::from_name(group).ok().flatten();
        let group_id = known.map(|group| group.gid.as_raw());
        match group_id {
            Some(id) => chown(path, None, Some(id)).map_err(failed)?,
            None => log::warn!(
                "there is no group {group}: only root may use {}",
                path.display()
            ),
        }
        let mode = if group_id.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
        let socket = Self {
            path: path.into(),
            group: group_id,
            _lock: lock,
        };
        Ok((socket, listener))
    }
}

/// Binds so that nobody can connect before the owner and the mode are set.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    bound
}

fn lock(socket: &Path) -> Result<Flock<File>, DaemonError> {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let failed = |source| DaemonError::Socket {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => DaemonError::Running {
            path: socket.into(),
        },
        errno => failed(errno.into()),
    })
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock file stays: removing it would let two daemons have a lock each.
        let _gone = fs::remove_file(&self.path);
    }
}
