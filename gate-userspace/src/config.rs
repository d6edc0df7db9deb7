//! What the configuration says, read and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::allow::Cidr;
use crate::endpoint::Endpoint;
use crate::gates::GateName;
use crate::health::Spec;
use crate::hooks::HookChoice;
use crate::release::Rate;

mod apply;
mod change;
mod check;
mod error;
mod file;
mod gate;
mod live;
mod plan;
mod read;
mod schema;
mod shape;
mod steps;
#[cfg(test)]
mod tests;
mod wanted;
mod whole;

pub use apply::{Applied, apply, planned};
pub use change::{Awaited, Change};
pub use error::{ConfigError, Position, Problem};
pub use live::{Live, LiveGate, LiveHandover};
pub use plan::{Plan, plan};
pub use schema::{markdown, schema};
pub use wanted::Target;

/// Where the configuration is, unless another place is named.
pub const PATH: &str = "/etc/gate/gate.toml";

/// Where the daemon's API is, unless the configuration names another place.
pub const SOCKET: &str = "/run/gate/gate.sock";

/// The shortest lease that can be asked for.
pub const LEASE_MIN: Duration = Duration::from_millis(1);
/// The longest lease that can be asked for.
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads the configuration: this file, and those of `conf.d` beside it. Nothing else of the host is
/// looked at.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let mut problems = error::Problems::default();
    let files = read::read_all(path, &mut problems);
    let config = whole::join(files, &mut problems);
    problems.finish()?;
    Ok(config)
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What concerns the daemon itself.
    pub daemon: DaemonConfig,
    /// The gates, by name.
    pub gates: BTreeMap<GateName, GateConfig>,
}

/// What concerns the daemon itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonConfig {
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// The group that may use it, besides root.
    pub group: String,
    /// Where metrics are also served over TCP; nowhere by default.
    pub metrics: Option<SocketAddr>,
    /// Room for held SYNs; none for the default, or for what is there.
    pub held: Option<u32>,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(SOCKET),
            group: "gate".to_owned(),
            metrics: None,
            held: None,
        }
    }
}

/// One gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateConfig {
    /// Its endpoints.
    pub endpoints: BTreeSet<Endpoint>,
    /// Where its connections go by.
    pub interfaces: Interfaces,
    /// How these are attached to.
    pub hook: HookChoice,
    /// What it is while nobody closes it.
    pub mode: DefaultMode,
    /// The longest that connections are held: the lease.
    pub max_hold: Duration,
    /// Sources that pass when the daemon closes it.
    pub allow: Vec<Cidr>,
    /// Its health checks; with none its health is not known, and nothing is done.
    pub checks: Vec<Spec>,
    /// What the daemon does once a check says that it is down.
    pub on_down: OnDown,
    /// What the daemon does once all checks say that it is up.
    pub on_up: OnUp,
    /// Who gets its new connections; none for its own listener.
    pub backends: Vec<BackendConfig>,
}

/// The interfaces of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// All over which its endpoints can be reached.
    Auto,
    /// These.
    Named(BTreeSet<String>),
}

/// What a gate is while nobody closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultMode {
    /// Open.
    Open,
    /// Open and guarded, for as long as `max_hold` from the first connection on that finds no listener.
    Guard,
}

/// What is done when a gate's backend goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDown {
    /// To new connections.
    pub new: Down,
    /// Whether established connections are reset.
    pub flush: bool,
}

/// What is done to new connections while a gate's backend is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Nothing.
    Nothing,
    /// They are held, for `max_hold` at the longest.
    Hold,
    /// They are refused, for as long as it is down.
    Reject,
}

/// What is done when a gate's backend is up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnUp {
    /// Whether what the daemon closed is opened, and what is held released.
    pub release: bool,
    /// No faster than this.
    pub rate: Option<Rate>,
}

/// A backend that new connections are handed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// Where it listens.
    pub address: Endpoint,
    /// Its part of the new connections, compared with the others'.
    pub weight: u32,
}
