//! TLS for checks: connectors, and what went wrong in words.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore,
};

use super::insecure::Trusting;
use super::{CheckFailure, Verify};

/// What is asked of the peer to speak over TLS (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// The connectors that checks share: the system's certificates are read once.
#[derive(Default)]
pub struct Connectors(Vec<(Verify, Protocol, TlsConnector)>);

impl Connectors {
    /// The connector that verifies like that.
    ///
    /// # Errors
    /// Where there are no certificates to verify against.
    pub(super) fn get(
        &mut self,
        verify: &Verify,
        protocol: Protocol,
    ) -> Result<TlsConnector, CheckFailure> {
        let is_it =
            |(other, speaks, _): &&(Verify, Protocol, _)| other == verify && *speaks == protocol;
        if let Some((_, _, connector)) = self.0.iter().find(is_it) {
            return Ok(connector.clone());
        }
        let connector = connector(verify, protocol)?;
        self.0.push((verify.clone(), protocol, connector.clone()));
        Ok(connector)
    }
}

fn connector(verify: &Verify, protocol: Protocol) -> Result<TlsConnector, CheckFailure> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| CheckFailure::TlsSetup(error.to_string()))?;
    let mut config = match verify {
        Verify::System => builder
            .with_root_certificates(system()?)
            .with_no_client_auth(),
        Verify::Against(file) => builder
            .with_root_certificates(of_file(file)?)
            .with_no_client_auth(),
        Verify::Nothing => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_no_client_auth(),
    };
    config.alpn_protocols = vec![match protocol {
        Protocol::Http1 => b"http/1.1".to_vec(),
        Protocol::Http2 => b"h2".to_vec(),
    }];
    // A resumed session shows no certificate, so one that has expired meanwhile would not be seen.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn system() -> Result<RootCertStore, CheckFailure> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let why = loaded.errors.first().map_or_else(
            || "the system has no CA certificates".to_owned(),
            ToString::to_string,
        );
        return Err(CheckFailure::TlsSetup(format!(
            "{why}: install ca-certificates, or verify nothing (--check-insecure)"
        )));
    }
    Ok(roots)
}

fn of_file(file: &Path) -> Result<RootCertStore, CheckFailure> {
    let refuse =
        |why: String| CheckFailure::TlsSetup(format!("certificates of {}: {why}", file.display()));
    let mut roots = RootCertStore::empty();
    // Read first: an error tells what the system said.
    let text = std::fs::read(file).map_err(|error| refuse(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|_| refuse("the file is no PEM".to_owned()))?;
        roots
            .add(certificate)
            .map_err(|error| refuse(error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(refuse("there are none in the file (PEM)".to_owned())),
        false => Ok(roots),
    }
}

/// The words for a failure of TLS, where it is one.
pub(super) fn cause(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(why) => certificate(why),
        Error::InvalidMessage(_) => "the peer speaks no TLS".to_owned(),
        Error::NoCertificatesPresented => "the peer showed no certificate".to_owned(),
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "the peer speaks another version of HTTP only".to_owned()
        }
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the peer has no certificate for that name".to_owned()
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the peer asks for a client certificate".to_owned()
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the peer speaks no TLS 1.2 or 1.3".to_owned()
        }
        Error::AlertReceived(alert) => format!("the peer refused, by the alert {alert:?}"),
        other => other.to_string(),
    })
}

fn certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired => "the certificate expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate expired on {}", date(*not_after))
        }
        CertificateError::NotValidYet => "the certificate is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate is not valid before {}", date(*not_before))
        }
        CertificateError::NotValidForName => "the certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            let names = match names.as_slice() {
                [] => "no name".to_owned(),
                names => names.join(", "),
            };
            let names = super::failure::shown(names.as_bytes());
            format!(
                "the certificate is for {names}, not for {}",
                expected.to_str()
            )
        }
        CertificateError::UnknownIssuer => {
            "the certificate's issuer is not among the trusted ones".to_owned()
        }
        CertificateError::Revoked => "the certificate was revoked".to_owned(),
        CertificateError::BadSignature => {
            "the certificate is not signed with the key of a trusted issuer".to_owned()
        }
        other => other.to_string(),
    }
}

/// The name alone: rustls writes `DnsName("a.example")`.
fn bare(presented: &str) -> &str {
    presented
        .split_once("(\"")
        .and_then(|(_, rest)| rest.strip_suffix("\")"))
        .or_else(|| {
            let (_, rest) = presented.split_once('(')?;
            rest.strip_suffix(')')
        })
        .unwrap_or(presented)
}

/// A moment in UTC, to the minute.
fn date(time: UnixTime) -> String {
    let moment = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
    let Some(moment) = moment else {
        return "a day that no calendar has".to_owned();
    };
    let text = humantime::format_rfc3339_seconds(moment).to_string();
    match text.split_once('T') {
        Some((day, time)) => format!("{day} at {} UTC", time.get(..5).unwrap_or(time)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_for_people() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
        assert_eq!(date(time), "2023-11-14 at 22:13 UTC");
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let refused = |path: &str| {
            let verify = Verify::Against(path.into());
            let refused = connector(&verify, Protocol::Http1).err();
            refused.expect("a refusal").to_string()
        };
        assert!(refused("/no/such/file").contains("No such file"));
        assert!(refused("/dev/null").contains("none in the file"));
    }
}
