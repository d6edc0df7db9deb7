//! Where things run: on either side, or in a network namespace that a test made itself.

use std::fmt;
use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::namespaces::new_network;
use super::{Process, Side, Topology};

/// How long the keeper of a namespace may take to tell its process id.
const LIMIT: Duration = Duration::from_secs(10);

/// One of a topology's network namespaces.
#[derive(Clone, Debug)]
pub enum Place {
    /// That of [`Side::Client`].
    Client,
    /// That of [`Side::Server`].
    Server,
    /// One that a test made.
    Other(Arc<File>),
}

impl From<Side> for Place {
    fn from(side: Side) -> Self {
        match side {
            Side::Client => Self::Client,
            Side::Server => Self::Server,
        }
    }
}

impl From<&Namespace> for Place {
    fn from(namespace: &Namespace) -> Self {
        Self::Other(Arc::clone(&namespace.network))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "Client",
            Self::Server => "Server",
            Self::Other(_) => "Other",
        })
    }
}

/// A network namespace besides those of the two sides, as a container has. It goes, with the
/// interfaces in it, when this is dropped and nothing runs there any more.
pub struct Namespace {
    network: Arc<File>,
    keeper: Process,
    name: String,
}

impl Namespace {
    pub(super) fn new(topology: &Topology) -> Result<Self> {
        let network = thread::spawn(new_network)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let network = Arc::new(network);
        // `ip link set … netns` takes the id of a process that is in there.
        let keeper = topology.spawn(
            Place::Other(Arc::clone(&network)),
            Command::new("sh").args(["-c", "ip link set lo up && echo $$ && exec sleep infinity"]),
        )?;
        let late = Instant::now() + LIMIT;
        let name = loop {
            let text = keeper.stdout()?;
            if let Some(id) = text.strip_suffix('\n') {
                break id.to_owned();
            }
            if keeper.has_ended()? || Instant::now() > late {
                bail!("no network namespace: {}", keeper.stderr()?);
            }
            thread::sleep(Duration::from_millis(2));
        };
        Ok(Self {
            network,
            keeper,
            name,
        })
    }

    /// What `ip link set … netns` calls it, inside the topology.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // An error can only mean that it has gone already.
        let _ = self.keeper.signal(nix::sys::signal::Signal::SIGKILL);
        let _ = self.keeper.wait(LIMIT);
    }
}
