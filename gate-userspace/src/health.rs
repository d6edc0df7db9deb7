//! Health checks: what is checked, how one check is made, what many of them come to.

mod body;
mod check;
mod checker;
mod connect;
mod exec;
mod failure;
mod first;
mod grpc;
mod http;
mod insecure;
mod monitor;
mod pass;
mod spec;
mod state;
mod statuses;
mod tls;

pub use check::{Check, CheckSyntax};
pub use checker::Checker;
pub use failure::{CheckFailure, Stage};
pub use monitor::{CheckHealth, GateHealth, HealthEvent, Monitor};
pub use pass::Passes;
pub use spec::{Spec, Verify};
pub use state::{HISTORY, Health, Sample, State};
pub use statuses::Statuses;
pub use tls::Connectors;

#[cfg(test)]
mod tests;
