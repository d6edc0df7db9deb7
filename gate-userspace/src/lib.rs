//! Gate's controller: loads and attaches the data path, turns the state words, releases
//! what is held, and drives a restart.
//!
//! The kernel holds all state, in maps pinned below [`pins::BPFFS`]. A process holds
//! nothing that the next one couldn't read there, so any of them may die at any
//! instruction.

pub mod clock;
pub mod datapath;
pub mod endpoint;
pub mod error;
pub mod health;
pub mod interfaces;
pub mod netlink;
pub mod pins;
pub mod release;
pub mod report;
pub mod restart;
pub mod rights;
pub mod sockets;
pub mod status;
pub mod sys;
pub mod tables;

pub use error::{Error, Result};
