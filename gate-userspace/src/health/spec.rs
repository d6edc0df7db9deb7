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
    /// Whom an HTTP or gRPC check asks for, if not the host of its URL: in `Host` or `:authority`, and
    /// over TLS in SNI; the certificate must be for it. The connection goes where the URL says.
    pub host: Option<String>,
    /// A text that the first 64 KiB of the answer's body must contain.
    pub body: Option<String>,
    /// How a certificate is verified.
    pub verify: Verify,
    /// From one check's begin to the next one's; the daemon varies it by a tenth.
    pub interval: Duration,
    /// For one whole check: look-up of the name, connection, TLS, request and answer.
    pub timeout: Duration,
    /// Successes in a row until it is up.
    pub rise: u32,
    /// Failures in a row until it is down.
    pub fall: u32,
}

impl Spec {
    /// A check once a second that counts at once, any status from 200 to 299 being healthy.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Self {
            check,
            statuses: Statuses::default(),
            host: None,
            body: None,
            verify: Verify::System,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
        }
    }
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
