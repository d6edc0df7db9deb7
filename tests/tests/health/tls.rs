//! HTTPS checks of a real nginx.

use std::process::Command;

use gate_tests::exe;
use gate_tests::nginx::Nginx;
use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::health::{Spec, Verify};

use crate::certificates::{Authority, Days, NOW, self_signed};
use crate::common::{LIMIT, listen, up};
use crate::{fails, passes, spec};

/// A server for each certificate: port 8441 for the first, and so on.
fn nginx<'a>(topology: &'a Topology, names: &[&str]) -> Nginx<'a> {
    let server = |(at, name): (usize, &&str)| {
        let port = 8441 + at;
        format!(
            "    server {{
        listen {port} ssl;
        listen [::]:{port} ssl;
        ssl_certificate /run/{name}.pem;
        ssl_certificate_key /run/{name}.key;
        location / {{ return 200 \"$ssl_server_name $host\\n\"; }}
    }}
"
        )
    };
    let mut http: String = names.iter().enumerate().map(server).collect();
    http += "    server { listen 8440; location / { return 200 ok; } }\n";
    Nginx::start_with(topology, Side::Server, "tls", server_v4(8441), &http).unwrap()
}

fn against(check: &str) -> Spec {
    Spec {
        verify: Verify::Against("/run/ca.pem".into()),
        ..spec(check)
    }
}

fn for_host(spec: Spec, host: &str) -> Spec {
    Spec {
        host: Some(host.to_owned()),
        ..spec
    }
}

#[test]
fn a_certificate_is_verified_against_the_file_that_is_named() {
    let topology = Topology::new().unwrap();
    let authority = Authority::new(&topology);
    authority
        .issue(&["10.0.0.5", "fd00::5"], NOW)
        .write(&topology, "good");
    self_signed(&["10.0.0.5"]).write(&topology, "own");
    let _nginx = nginx(&topology, &["good", "own"]);
    passes(&topology, &against("https://10.0.0.5:8441/"));
    passes(&topology, &against("https://[fd00::5]:8441/"));
    let foreign = "TLS: the certificate's issuer is not among the trusted ones";
    // The system knows neither.
    fails(&topology, &spec("https://10.0.0.5:8441/"), foreign);
    fails(&topology, &against("https://10.0.0.5:8442/"), foreign);
    let own = Spec {
        verify: Verify::Against("/run/own.pem".into()),
        ..spec("https://10.0.0.5:8442/")
    };
    passes(&topology, &own);
    let nothing = Spec {
        verify: Verify::Nothing,
        ..spec("https://10.0.0.5:8442/")
    };
    passes(&topology, &nothing);
    // Another issuer, who has the same name and another key.
    let _impostor = Authority::new(&topology);
    fails(
        &topology,
        &against("https://10.0.0.5:8441/"),
        "TLS: the certificate is not signed with the key of a trusted issuer",
    );
}

#[test]
fn a_certificate_out_of_its_time_is_named_with_its_date() {
    let topology = Topology::new().unwrap();
    let authority = Authority::new(&topology);
    authority
        .issue(&["10.0.0.5"], Days(-400, -2))
        .write(&topology, "old");
    authority
        .issue(&["10.0.0.5"], Days(2, 400))
        .write(&topology, "new");
    let _nginx = nginx(&topology, &["old", "new"]);
    let date = |days: &str| {
        let mut command = Command::new("date");
        let output = command.args(["-u", "+%Y-%m-%d", "-d", days]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.trim().to_owned()
    };
    let expired = format!("TLS: the certificate expired on {}", date("-2 days"));
    fails(&topology, &against("https://10.0.0.5:8441/"), &expired);
    let early = format!(
        "TLS: the certificate is not valid before {}",
        date("+2 days")
    );
    fails(&topology, &against("https://10.0.0.5:8442/"), &early);
}

#[test]
fn a_certificate_must_be_for_the_host_that_is_asked_for() {
    let topology = Topology::new().unwrap();
    let authority = Authority::new(&topology);
    authority
        .issue(&["app.example", "*.shop.example"], NOW)
        .write(&topology, "app");
    let _nginx = nginx(&topology, &["app"]);
    let check = || against("https://10.0.0.5:8441/");
    fails(
        &topology,
        &check(),
        "TLS: the certificate is for app.example, *.shop.example, not for 10.0.0.5",
    );
    // SNI, Host and the verified name are one.
    for host in ["app.example", "www.shop.example:8441"] {
        let name = host.split(':').next().unwrap();
        let spec = Spec {
            body: Some(format!("{name} {name}\n")),
            ..for_host(check(), host)
        };
        passes(&topology, &spec);
    }
    fails(
        &topology,
        &for_host(check(), "other.example"),
        "not for other.example",
    );
    let any = Spec {
        verify: Verify::Nothing,
        ..for_host(check(), "other.example")
    };
    passes(&topology, &any);
}

#[test]
fn a_peer_that_speaks_no_tls_is_named() {
    let topology = Topology::new().unwrap();
    let authority = Authority::new(&topology);
    authority.issue(&["10.0.0.5"], NOW).write(&topology, "good");
    let _nginx = nginx(&topology, &["good"]);
    fails(
        &topology,
        &against("https://10.0.0.5:8440/"),
        "TLS: the peer speaks no TLS",
    );
    // The other way round nginx answers, in plain text.
    fails(&topology, &spec("http://10.0.0.5:8441/"), "status 400");
}

#[test]
fn a_handshake_that_is_not_answered_ends_at_the_timeout() {
    let topology = Topology::new().unwrap();
    let _mute = listen(&topology, server_v4(8441));
    let spec = Spec {
        timeout: std::time::Duration::from_millis(200),
        verify: Verify::Nothing,
        ..spec("https://10.0.0.5:8441/")
    };
    let why = "no answer within 200ms: the TLS handshake is not done";
    fails(&topology, &spec, why);
}

#[test]
fn certificates_that_cannot_be_read_are_refused_before_anything_is_sent() {
    let topology = Topology::new().unwrap();
    for (file, why) in [
        (
            "/run/none.pem",
            "certificates of /run/none.pem: No such file",
        ),
        ("/dev/null", "certificates of /dev/null: there are none"),
    ] {
        let spec = Spec {
            verify: Verify::Against(file.into()),
            ..spec("https://10.0.0.5:8441/")
        };
        fails(&topology, &spec, why);
    }
}

#[test]
fn a_restart_verifies_against_the_systems_certificates() {
    let topology = up();
    let authority = Authority::new(&topology);
    authority.issue(&["10.0.0.5"], NOW).write(&topology, "good");
    let _nginx = nginx(&topology, &["good"]);
    let restart = |options: &[&str], trusted: &str| {
        let check = ["--check", "https://10.0.0.5:8441/", "--max-hold", "1s"];
        let mut command = Command::new(exe::gate().unwrap());
        command
            .args(["restart", "10.0.0.5:8441"])
            .args(check)
            .args(options)
            .args(["--", "true"])
            // Where the system's certificates are, as OpenSSL takes it.
            .env("SSL_CERT_FILE", trusted);
        topology.output(Side::Server, &mut command, LIMIT).unwrap()
    };
    let trusted = restart(&[], "/run/ca.pem");
    assert_eq!(trusted.code(), 0, "{trusted}");
    self_signed(&["other.example"]).write(&topology, "other");
    let foreign = restart(&[], "/run/other.pem");
    assert_eq!(foreign.code(), 124, "{foreign}");
    assert!(foreign.stderr.contains("issuer is not among"), "{foreign}");
    let any = restart(&["--check-insecure"], "/run/other.pem");
    assert_eq!(any.code(), 0, "{any}");
}
