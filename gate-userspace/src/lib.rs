//! Gate's controller: loads and attaches the data path, turns the state words, releases
//! what is held, and drives a restart.
//!
//! The kernel holds all state, in maps pinned below [`pins::BPFFS`]. A process holds
//! nothing that the next one couldn't read there, so any of them may die at any
//! instruction.

pub mod alias;
pub mod allow;
pub mod attach;
pub mod cgroups;
pub mod clock;
pub mod close;
pub mod config;
pub mod conntrack;
pub mod daemon;
pub mod datapath;
pub mod doctor;
pub mod drain;
pub mod endpoint;
pub mod error;
pub mod events;
pub mod features;
pub mod filters;
pub mod flush;
pub mod gates;
pub mod guard;
pub mod handover;
pub mod health;
pub mod hooks;
pub mod interfaces;
pub mod listens;
pub mod logging;
pub mod metrics;
pub mod nap;
pub mod netdev;
pub mod netlink;
pub mod notify;
pub mod object;
pub mod open;
pub mod pins;
pub mod purge;
pub mod reach;
pub mod release;
pub mod report;
pub mod resend;
pub mod restart;
pub mod rights;
pub mod routes;
pub mod signals;
pub mod sockets;
pub mod status;
pub mod steering;
pub mod sys;
pub mod tables;
pub mod top;

pub use error::{Error, Result};
