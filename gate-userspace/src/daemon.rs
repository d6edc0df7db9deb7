//! `gate daemon`: watches the backends, closes and opens gates by their health, releases what guards
//! hold, and serves the API. It holds nothing that the next one could not read from the kernel or the
//! configuration, so killing it changes nothing in the data path.

pub mod access;
mod actions;
mod api;
pub mod client;
pub mod control;
mod error;
mod hub;
mod keeper;
mod reload;
mod run;
mod server;
mod socket;

use serde_json::{Map, Value};

pub use error::DaemonError;
pub use run::{Options, run};

/// What a command answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// Its exit code.
    pub code: u8,
    /// Its fields.
    pub fields: Value,
}

/// Why a command was not even begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// There is none of that name here.
    #[error("{0}")]
    Command(String),
    /// It does not take these arguments.
    #[error("{0}")]
    Arguments(String),
}

/// The commands that the API runs.
pub trait Commands: Send + Sync {
    /// Their names.
    fn names(&self) -> Vec<String>;

    /// Runs one to its end, which may take as long as its arguments say.
    ///
    /// # Errors
    /// [`Misuse`].
    fn run(&self, command: &str, arguments: &Map<String, Value>) -> Result<Done, Misuse>;
}
