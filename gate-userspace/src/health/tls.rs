//! TLS for checks, against the system's certificates.

use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::CheckFailure;

/// A connector that verifies against the system's certificates.
///
/// # Errors
/// Where the system has none.
pub(super) fn connector() -> Result<TlsConnector, CheckFailure> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let why = loaded.errors.first().map_or_else(
            || "the system has no CA certificates".to_owned(),
            ToString::to_string,
        );
        return Err(CheckFailure::TlsSetup(format!(
            "{why}: install ca-certificates, or use --check-insecure"
        )));
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
