//! Who may use the API, and how much of it at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;

use tokio::net::UnixStream;

/// Connections of all users together.
const MOST: usize = 256;

/// Connections of one user: whoever opens many keeps nobody else out.
const MOST_OF_ONE: usize = 64;

/// Of those, places that only root takes.
const OF_ROOT: usize = 16;

/// Who is at the other end, as the kernel saw it at connect(2) (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub user: u32,
    /// The groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let mut groups = peer_groups(stream)?;
        groups.push(credentials.gid());
        Ok(Self {
            user: credentials.uid(),
            groups,
        })
    }

    /// Whether this user may use the API: root, and the members of the group that the socket has.
    #[must_use]
    pub fn may_enter(&self, group: Option<u32>) -> bool {
        self.user == 0 || group.is_some_and(|group| self.groups.contains(&group))
    }
}

/// The supplementary groups (`SO_PEERGROUPS`, Linux 4.13).
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    /// Most that a process can have (`NGROUPS_MAX`).
    const MOST: usize = 65_536;
    let mut groups = vec![0_u32; 64];
    loop {
        let bytes = groups.len() * size_of::<u32>();
        let mut len = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the buffer is of the length that is passed, and lives through the call.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let found = len as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(found);
            return Ok(groups);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ERANGE) && found <= MOST => {
                groups.resize(found.max(groups.len() * 2), 0);
            }
            error => return Err(error),
        }
    }
}

/// The connections that are open, by user.
#[derive(Clone, Debug, Default)]
pub struct Connections(Rc<RefCell<HashMap<u32, usize>>>);

/// One connection's place.
#[derive(Debug)]
pub struct Place {
    connections: Connections,
    user: u32,
}

impl Connections {
    /// A place for one more connection of this user; none where there are too many.
    #[must_use]
    pub fn enter(&self, user: u32) -> Option<Place> {
        let mut open = self.0.borrow_mut();
        let all: usize = open.values().sum();
        let own = open.get(&user).copied().unwrap_or_default();
        let most = if user == 0 { MOST } else { MOST - OF_ROOT };
        if own >= MOST_OF_ONE || all >= most {
            return None;
        }
        open.insert(user, own + 1);
        Some(Place {
            connections: self.clone(),
            user,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.0.borrow_mut();
        if let Some(own) = open.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_group_may_enter() {
        let peer = |user, groups: &[u32]| Peer {
            user,
            groups: groups.to_vec(),
        };
        assert!(peer(0, &[]).may_enter(None));
        assert!(peer(1000, &[1000, 7]).may_enter(Some(7)));
        assert!(!peer(1000, &[1000]).may_enter(Some(7)));
        assert!(!peer(1000, &[1000, 7]).may_enter(None));
    }

    #[test]
    fn one_user_keeps_nobody_else_out() {
        let connections = Connections::default();
        let own: Vec<_> = (0..1000).map_while(|_| connections.enter(1000)).collect();
        assert_eq!(own.len(), MOST_OF_ONE);
        let root = connections.enter(0);
        assert!(root.is_some());
        let others: Vec<_> = (1..1000)
            .filter_map(|user| connections.enter(user))
            .collect();
        assert_eq!(own.len() + others.len() + 1, MOST - OF_ROOT);
        assert!(connections.enter(0).is_some());
        drop((own, others, root));
        assert!(connections.enter(1000).is_some());
        assert!(connections.0.borrow().is_empty());
    }

    #[tokio::test]
    async fn the_kernel_tells_who_it_is() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&one).expect("credentials");
        assert_eq!(peer.user, nix::unistd::getuid().as_raw());
        assert!(peer.groups.contains(&nix::unistd::getgid().as_raw()));
    }
}
