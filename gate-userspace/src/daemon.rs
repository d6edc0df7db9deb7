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

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};

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

/// Serves the API to one client that may use it, with no daemon behind it: what only a daemon knows
/// is answered as if it were ending.
pub async fn serve_alone<S>(stream: S, commands: Arc<dyn Commands>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (asks, daemon) = mpsc::channel(1);
    drop(daemon);
    let api = api::Api {
        hub: hub::Hub::new(),
        commands,
        asks,
        turns: Arc::new(Semaphore::new(api::COMMANDS)),
    };
    server::serve(stream, true, Rc::new(api)).await;
}
