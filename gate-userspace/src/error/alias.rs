//! Why a status port can't be had.

use super::exit;
use crate::endpoint::Endpoint;

/// Why there is no such status port. Its text is one line: the cause, then the remedy.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    /// A socket listens there.
    #[error(
        "{by} listens on {at}, so nothing else can answer there: `gate alias {gate} {at} --existing` \
         makes it a status port as it is"
    )]
    InUse {
        /// Where.
        at: Endpoint,
        /// The process.
        by: String,
        /// The gate.
        gate: String,
    },
    /// No socket listens at what is to be a status port as it is.
    #[error(
        "nothing listens on {at}: start what does, or let the gate's own listener answer with `gate \
         alias {gate} {at}`"
    )]
    NotInUse {
        /// Where.
        at: Endpoint,
        /// The gate.
        gate: String,
    },
    /// It is an endpoint of some gate.
    #[error("{at} is an endpoint of {gate}: choose another port, or another address")]
    Endpoint {
        /// Where.
        at: Endpoint,
        /// The gate.
        gate: String,
    },
    /// It is a status port already.
    #[error("{at} is a status port of {gate}: `gate alias {gate} {at} --remove` first")]
    Known {
        /// Where.
        at: Endpoint,
        /// The gate.
        gate: String,
    },
    /// A status port would have nobody to answer.
    #[error(
        "{of} answers on {at}, a status port of {gate}: `gate alias {gate} {at} --remove` first"
    )]
    Answering {
        /// The status port.
        at: Endpoint,
        /// Whose listener answers.
        of: Endpoint,
        /// The gate.
        gate: String,
    },
    /// None of the endpoints is the one.
    #[error(
        "which endpoint of {gate} is to answer on {at}? It has {endpoints}: say it with `--of`"
    )]
    Which {
        /// The status port.
        at: Endpoint,
        /// The gate.
        gate: String,
        /// What it has.
        endpoints: String,
    },
    /// `--of` names none of its endpoints.
    #[error("{of} is no endpoint of {gate}, which has {endpoints}: choose one of them")]
    NotOf {
        /// What was asked for.
        of: Endpoint,
        /// The gate.
        gate: String,
        /// What it has.
        endpoints: String,
    },
    /// Another host's.
    #[error(
        "{endpoint} is no address of this host, so no socket here can answer: run `gate alias` on the \
         backend's host"
    )]
    NotHere {
        /// The address.
        endpoint: Endpoint,
    },
    /// The gate has no status port.
    #[error("{gate} has no status port: `gate alias {gate} ADDRESS:PORT` makes one")]
    None {
        /// The gate.
        gate: String,
    },
}

impl AliasError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Which { .. } | Self::NotOf { .. } => exit::USAGE,
            Self::InUse { .. }
            | Self::NotInUse { .. }
            | Self::Endpoint { .. }
            | Self::Known { .. }
            | Self::Answering { .. }
            | Self::NotHere { .. }
            | Self::None { .. } => exit::STATE,
        }
    }
}
