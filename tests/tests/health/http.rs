//! HTTP checks of a real nginx.

use gate_tests::nginx::Nginx;
use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::health::Spec;

use crate::common::{shell, up};
use crate::{fails, passes, spec};

/// A server that is chosen by its name, one for all other names, a socket, and one that speaks
/// HTTP/2 only.
const HTTP: &str = "
    server {
        listen 8080 default_server;
        listen [::]:8080;
        listen unix:/run/web.sock;
        location / { return 200 \"other\\n\"; }
        location /busy { return 503; }
        location /moved { return 301 https://app.example/login; }
        location /big { alias /run/big; }
        location /none { return 204; }
    }
    server {
        listen 8080;
        server_name app.example;
        location / { return 200 \"app is well\\n\"; }
    }
    server {
        listen 8082 http2;
        location / { return 200 \"ok\\n\"; }
    }
";

fn nginx(topology: &Topology) -> Nginx<'_> {
    // The text begins before the 64 KiB are over in one, and after them in the other.
    shell(
        topology,
        Side::Server,
        "mkdir /run/big; head -c 65000 /dev/zero > /run/big/in; echo needle >> /run/big/in; \
         head -c 70000 /dev/zero > /run/big/out; echo needle >> /run/big/out",
    );
    Nginx::start_with(topology, Side::Server, "web", server_v4(8080), HTTP).unwrap()
}

fn body(check: &str, text: &str) -> Spec {
    Spec {
        body: Some(text.to_owned()),
        ..spec(check)
    }
}

#[test]
fn a_status_that_is_expected_is_healthy() {
    let topology = Topology::new().unwrap();
    let _nginx = nginx(&topology);
    passes(&topology, &spec("http://10.0.0.5:8080/healthz?full=1"));
    passes(&topology, &spec("http://[fd00::5]:8080/"));
    passes(&topology, &spec("http://10.0.0.5:8080/none"));
    fails(&topology, &spec("http://10.0.0.5:8080/busy"), "status 503");
    let expecting = |check, statuses: &str| Spec {
        statuses: statuses.parse().unwrap(),
        ..spec(check)
    };
    passes(&topology, &expecting("http://10.0.0.5:8080/busy", "503"));
    passes(
        &topology,
        &expecting("http://10.0.0.5:8080/moved", "200-399"),
    );
    fails(
        &topology,
        &expecting("http://10.0.0.5:8080/", "204"),
        "status 200",
    );
    fails(
        &topology,
        &spec("http://10.0.0.5:8081/"),
        "connection refused",
    );
}

#[test]
fn a_redirect_is_not_followed_and_says_where_to() {
    let topology = Topology::new().unwrap();
    let _nginx = nginx(&topology);
    fails(
        &topology,
        &spec("http://10.0.0.5:8080/moved"),
        "status 301, to https://app.example/login: a redirect is not followed",
    );
}

#[test]
fn the_host_that_is_asked_for_need_not_be_that_of_the_url() {
    let topology = Topology::new().unwrap();
    let _nginx = nginx(&topology);
    let app = "app is well";
    fails(
        &topology,
        &body("http://10.0.0.5:8080/", app),
        "lacks the expected text",
    );
    for host in ["app.example", "app.example:8080"] {
        let spec = Spec {
            host: Some(host.to_owned()),
            ..body("http://10.0.0.5:8080/", app)
        };
        passes(&topology, &spec);
    }
    for host in ["", "a b", "user@app.example", "app.example/x", "a\r\nb"] {
        let spec = Spec {
            host: Some(host.to_owned()),
            ..spec("http://10.0.0.5:8080/")
        };
        fails(&topology, &spec, "is no host name that can be asked for");
    }
}

#[test]
fn a_text_counts_in_the_first_64_kib_of_the_body() {
    let topology = Topology::new().unwrap();
    let _nginx = nginx(&topology);
    passes(&topology, &body("http://10.0.0.5:8080/big/in", "needle"));
    fails(
        &topology,
        &body("http://10.0.0.5:8080/big/out", "needle"),
        "the first 64 KiB of the body lacks the expected text",
    );
    fails(
        &topology,
        &body("http://10.0.0.5:8080/none", "needle"),
        "the whole of the body lacks the expected text",
    );
}

#[test]
fn http_goes_over_a_unix_socket_too() {
    let topology = Topology::new().unwrap();
    let _nginx = nginx(&topology);
    passes(&topology, &body("http+unix:/run/web.sock:/a?b=c", "other"));
    passes(&topology, &spec("http+unix:/run/web.sock"));
    let app = Spec {
        host: Some("app.example".to_owned()),
        ..body("http+unix:/run/web.sock:/", "other")
    };
    passes(&topology, &app);
    fails(
        &topology,
        &spec("http+unix:/run/web.sock:/busy"),
        "status 503",
    );
    fails(
        &topology,
        &spec("http+unix:/run/none.sock:/"),
        "No such file",
    );
}

#[test]
fn a_peer_that_speaks_http_2_only_is_named() {
    let topology = Topology::new().unwrap();
    let _nginx = nginx(&topology);
    fails(
        &topology,
        &spec("http://10.0.0.5:8082/"),
        "HTTP: the peer speaks HTTP/2 only",
    );
}

#[test]
fn a_restart_waits_for_any_kind_of_check() {
    let topology = up();
    let nginx = nginx(&topology);
    let start = nginx.start_line();
    for check in [
        "http+unix:/run/web.sock:/",
        "unix:/run/web.sock",
        "http://10.0.0.5:8080/",
    ] {
        // nginx leaves its socket's file behind when it is killed, and then refuses to bind it.
        let stop = nginx.stop_and_wait_line();
        let line = format!("{stop} && rm -f /run/web.sock && sleep 0.2 && {start}");
        let args = ["restart", "10.0.0.5:8080", "--check", check];
        let output = topology
            .gate(args.iter().chain(&["--", "sh", "-c", &line]))
            .unwrap();
        assert_eq!(output.code(), 0, "{check}: {output}");
    }
}
