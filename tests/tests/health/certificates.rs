//! Certificates for tests, made anew each time.

use std::time::{Duration, SystemTime};

use gate_tests::topology::{Side, Topology};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// An issuer, whose certificate is in `/run/ca.pem` of the topology.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, in PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// From when to when a certificate is valid, in days from today.
#[derive(Clone, Copy)]
pub struct Days(pub i64, pub i64);

/// Yesterday to tomorrow.
pub const NOW: Days = Days(-1, 1);

impl Authority {
    pub fn new(topology: &Topology) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "Gate's tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        write(topology, "/run/ca.pem", &issuer.pem());
        Self(issuer)
    }

    /// A certificate for these names and addresses.
    pub fn issue(&self, names: &[&str], days: Days) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = params(names, days);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A certificate that nobody else has signed.
pub fn self_signed(names: &[&str]) -> Identity {
    let key = KeyPair::generate().unwrap();
    let certificate = params(names, NOW).self_signed(&key).unwrap();
    Identity {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

impl Identity {
    /// Writes `/run/NAME.pem` and `/run/NAME.key`.
    pub fn write(&self, topology: &Topology, name: &str) {
        write(topology, &format!("/run/{name}.pem"), &self.certificate);
        write(topology, &format!("/run/{name}.key"), &self.key);
    }
}

fn params(names: &[&str], days: Days) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = day(days.0).into();
    params.not_after = day(days.1).into();
    params
}

fn day(from_now: i64) -> SystemTime {
    let span = Duration::from_secs(from_now.unsigned_abs() * 24 * 3600);
    match from_now {
        0.. => SystemTime::now() + span,
        _ => SystemTime::now() - span,
    }
}

fn write(topology: &Topology, path: &str, text: &str) {
    topology
        .run(Side::Server, || Ok(std::fs::write(path, text)?))
        .unwrap();
}
