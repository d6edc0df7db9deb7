//! A check with all that belongs to it.

use std::path::PathBuf;
use std::time::Duration;

use super::{Check, Statuses};

/// A check with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What is checked.
    pub check: Check,
    /// The HTTP statuses that count as healthy.
    pub statuses: Statuses,
    /// The `Host` that an HTTP check asks for, if not that of its URL.
    pub host: Option<String>,
    /// A text that the body of the answer must contain.
    pub body: Option<String>,
    /// How a certificate is verified.
    pub verify: Verify,
    /// From one check's begin to the next one's.
    pub interval: Duration,
    /// For one whole check.
    pub timeout: Duration,
    /// Successes in a row until it is up.
    pub rise: u32,
    /// Failures in a row until it is down.
    pub fall: u32,
}

/// How a certificate is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Against the system's certificates.
    System,
    /// Against the certificates of this file (PEM).
    Against(PathBuf),
    /// Not at all.
    Nothing,
}
