//! The daemon's API: what it answers, who may use it, and how much of it. Needs root.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{
    CONFIG, ENDPOINT, LIMIT, MS, SOCKET, TARGET, assert_complaint, gate, get, held_client, mode,
    post, restart_daemon, run_gate, shell, spawn_daemon, start_daemon, stop_daemon, wait_until,
    write,
};
use gate_tests::backend::raise_file_limit;
use gate_tests::exe;
use gate_tests::topology::{Process, Side, Topology};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const GATES: &str = "[gate.web]\nendpoints = [\"10.0.0.5:8080\"]\ninterfaces = [\"eth0\"]\n";

fn up() -> (Topology, Process) {
    let topology = Topology::new().unwrap();
    let daemon = start_daemon(&topology, GATES);
    (topology, daemon)
}

/// A connection to the API's socket, from a thread of the topology.
fn dial(topology: &Topology) -> UnixStream {
    let dial = || {
        let stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    };
    topology.run(Side::Server, dial).unwrap()
}

/// What comes back, until the other end closes.
fn rest(mut stream: &UnixStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is no answer less.
    let _end = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn it_does_what_the_command_line_does() {
    let (topology, daemon) = up();
    let (status, index) = get(&topology, "/v1").unwrap();
    assert_eq!(status, 200);
    for path in index["get"].as_array().unwrap() {
        let path = path.as_str().unwrap();
        if path != "/v1/events" {
            assert_eq!(get(&topology, path).unwrap().0, 200, "{path}");
        }
    }
    let hold = json!({ "gate": "web", "for": "1m", "allow": ["10.9.0.0/16"] });
    let (status, held) = post(&topology, "/v1/hold", &hold);
    assert_eq!((status, mode(&topology, "web")), (200, "hold"), "{held}");
    let client = held_client(&topology, "web", TARGET);
    let (status, live) = get(&topology, "/v1/status").unwrap();
    let printed = gate(&topology, &["status", "--json"]).stdout;
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(status, 200);
    assert_eq!(live["gates"][0]["gate"], printed["gates"][0]["gate"]);
    assert_eq!(live["gates"][0]["held"], printed["gates"][0]["held"]);
    let (status, opened) = post(&topology, "/v1/open", &json!({ "gate": ["web"] }));
    assert_eq!((status, mode(&topology, "web")), (200, "open"), "{opened}");
    assert_eq!(opened["released"], 1, "{opened}");
    // Nobody listens, so it is refused, which is an answer.
    drop(client);
    let define = json!({ "name": "db", "endpoint": ["10.0.0.5:5432", "[fd00::5]:5432"] });
    assert_eq!(post(&topology, "/v1/define", &define).0, 200);
    let (status, drained) = post(&topology, "/v1/drain", &json!({ "gate": "db" }));
    assert_eq!(status, 200, "{drained}");
    assert_eq!(
        post(&topology, "/v1/forget", &json!({ "name": "db" })).0,
        200
    );
    stop_daemon(&daemon);
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let (topology, daemon) = up();
    for (path, body, status, words) in [
        ("/v1/hold", json!({}), 400, "GATE"),
        (
            "/v1/hold",
            json!({ "gate": "web", "fro": "1s" }),
            400,
            "it takes gate, for, allow",
        ),
        (
            "/v1/hold",
            json!({ "gate": "web", "for": "soon" }),
            400,
            "write a time",
        ),
        (
            "/v1/hold",
            json!({ "gate": "nobody" }),
            409,
            "no gate nobody",
        ),
        ("/v1/hold", json!([1]), 400, "JSON object"),
        (
            "/v1/restart",
            json!({ "gate": "web" }),
            404,
            "not in the API",
        ),
        ("/v1/nonsense", json!({}), 404, "no command nonsense"),
        (
            "/v1/handover",
            json!({ "gate": "web", "then": "id" }),
            400,
            "takes no \"then\"",
        ),
    ] {
        let (found, answer) = post(&topology, path, &body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{path} {body}: {answer}");
        assert!(
            error.contains(words) && error.lines().count() == 1,
            "{error}"
        );
    }
    assert_eq!(get(&topology, "/").unwrap().0, 404);
    assert_eq!(get(&topology, "/v1/hold").unwrap().0, 404);
    let stream = dial(&topology);
    (&stream)
        .write_all(b"DELETE /v1/status HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert!(rest(&stream).starts_with("HTTP/1.1 405"));
    assert_eq!(mode(&topology, "web"), "open");
    stop_daemon(&daemon);
}

#[test]
fn whoever_follows_sees_what_others_do() {
    let (topology, daemon) = up();
    let stream = dial(&topology);
    (&stream)
        .write_all(b"GET /v1/events HTTP/1.1\r\nHost: gate\r\n\r\n")
        .unwrap();
    let mut lines = BufReader::new(&stream).lines();
    let mut next = |word: &str| loop {
        let line = lines.next().expect("a line").expect("a line");
        if line.contains(word) {
            return line;
        }
    };
    next("following");
    gate(&topology, &["hold", "web", "--for", "1m"]);
    let closed: Value = serde_json::from_str(&next("closed")).unwrap();
    assert_eq!(closed["gate"], "web", "{closed}");
    gate(&topology, &["open", "web"]);
    next("opened");
    gate(&topology, &["hold", "web", "--for", "200ms"]);
    next("lease_over");
    stop_daemon(&daemon);
}

#[test]
fn an_unprivileged_user_is_kept_out_and_a_member_of_the_group_is_not() {
    let topology = Topology::new().unwrap();
    // A group that every Debian has.
    let config = format!("[daemon]\ngroup = \"users\"\n{GATES}");
    let daemon = start_daemon(&topology, &config);
    let line = format!("stat -c '%a %U %G' {SOCKET}");
    assert_eq!(
        shell(&topology, Side::Server, &line).trim(),
        "660 root users"
    );
    let gate = exe::gate().unwrap();
    let reload = format!("{} reload 2>&1; echo code $?", gate.display());
    let as_user = |rest: &str| {
        let line = format!("setpriv --reuid=65534 --regid=65534 {rest} sh -c '{reload}'");
        shell(&topology, Side::Server, &line)
    };
    let said = as_user("--clear-groups");
    assert!(
        said.contains("no right to connect") && said.contains("code 4"),
        "{said}"
    );
    let said = as_user("--groups 100");
    assert!(said.contains("code 0"), "{said}");
    // Whoever can connect all the same is asked who he is.
    shell(&topology, Side::Server, &format!("chmod 666 {SOCKET}"));
    let said = as_user("--clear-groups");
    assert!(said.contains("only root and the members"), "{said}");
    stop_daemon(&daemon);
}

/// Makes the calling thread, and nothing else of the process, another user's.
fn become_nobody() -> std::io::Result<()> {
    const NOBODY: libc::c_long = 65534;
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // SAFETY: the call takes three integers; made directly, it changes this thread alone.
        let result = unsafe { libc::syscall(call, NOBODY, NOBODY, NOBODY) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// How many sockets a process has.
fn sockets(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let is_socket = |target: &std::path::PathBuf| target.to_string_lossy().starts_with("socket:");
    targets.filter(is_socket).count()
}

#[test]
fn a_thousand_silent_connections_keep_nobody_out() {
    let (topology, daemon) = up();
    let line = format!("chmod 666 {SOCKET}");
    shell(&topology, Side::Server, &line);
    // As another user, who has a share of his own.
    let silent = || {
        raise_file_limit()?;
        become_nobody()?;
        let dial = |_| Ok(UnixStream::connect(SOCKET)?);
        (0..1000).map(dial).collect::<anyhow::Result<Vec<_>>>()
    };
    let silent = topology.run(Side::Server, silent).unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(get(&topology, "/v1").unwrap().0, 200);
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // Those that say nothing are let go.
    wait_until("they are closed", || sockets(daemon.id()) < 20);
    drop(silent);
    stop_daemon(&daemon);
}

#[test]
fn a_request_that_is_too_large_or_too_slow_is_refused() {
    let (topology, daemon) = up();
    // 100 MB, of which no more is read than is allowed.
    let large = dial(&topology);
    let head = b"POST /v1/hold HTTP/1.1\r\nHost: gate\r\nContent-Length: 104857600\r\n\r\n";
    (&large).write_all(head).unwrap();
    let chunk = [b'x'; 1 << 16];
    let mut sent = 0;
    while sent < 100 << 20 {
        match (&large).write(&chunk) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    assert!(sent < 10 << 20, "{sent} bytes were taken");
    assert!(rest(&large).starts_with("HTTP/1.1 413"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let resident: u32 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 200 << 10, "{resident} kB");
    // A head without an end.
    let long = dial(&topology);
    (&long)
        .write_all(b"GET /v1 HTTP/1.1\r\nHost: gate\r\nX: ")
        .unwrap();
    let _full = (&long).write_all(&vec![b'x'; 64 << 10]);
    assert!(rest(&long).starts_with("HTTP/1.1 431"));
    // A body that never comes.
    let slow = dial(&topology);
    (&slow)
        .write_all(b"POST /v1/hold HTTP/1.1\r\nHost: gate\r\nContent-Length: 9\r\n\r\n{")
        .unwrap();
    assert!(rest(&slow).starts_with("HTTP/1.1 408"));
    // No HTTP at all.
    let other = dial(&topology);
    (&other)
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        .unwrap();
    assert!(!rest(&other).contains("200"));
    assert_eq!(get(&topology, "/v1").unwrap().0, 200);
    stop_daemon(&daemon);
}

#[test]
fn a_socket_path_in_use_is_told() {
    let (topology, daemon) = up();
    let output = spawn_daemon(&topology).wait(LIMIT).unwrap();
    assert_eq!(output.code(), 3, "{output}");
    assert_complaint(&output, &["another gate daemon answers", SOCKET]);
    // The first is none the worse.
    assert_eq!(get(&topology, "/v1").unwrap().0, 200);
    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait(LIMIT).unwrap();
    // What a killed one left is replaced.
    let daemon = restart_daemon(&topology);
    stop_daemon(&daemon);
    shell(&topology, Side::Server, &format!("echo mine > {SOCKET}"));
    let output = spawn_daemon(&topology).wait(LIMIT).unwrap();
    assert_eq!(output.code(), 3, "{output}");
    assert_complaint(&output, &["is no socket", "remove it"]);
    let kept = shell(&topology, Side::Server, &format!("cat {SOCKET}"));
    assert_eq!(kept, "mine\n");
}

#[test]
fn without_a_daemon_the_command_line_goes_on_and_reload_says_so() {
    let topology = Topology::new().unwrap();
    let output = run_gate(&topology, Side::Server, &["reload"]);
    assert_eq!(output.code(), 3, "{output}");
    assert_complaint(&output, &["no gate daemon answers", "systemctl start gate"]);
    gate(&topology, &["up", "eth0"]);
    gate(&topology, &["hold", ENDPOINT]);
    assert_eq!(mode(&topology, ENDPOINT), "hold");
}

#[test]
fn metrics_are_served_over_tcp_where_that_is_asked_for() {
    let topology = Topology::new().unwrap();
    let config = format!("[daemon]\nmetrics = \"127.0.0.1:9464\"\n{GATES}");
    let daemon = start_daemon(&topology, &config);
    let fetch = |path: &str| {
        let ask = || {
            let mut stream = TcpStream::connect("127.0.0.1:9464")?;
            stream.set_read_timeout(Some(LIMIT))?;
            let head = format!("GET {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            Ok(std::io::read_to_string(stream)?)
        };
        topology.run(Side::Server, ask).unwrap()
    };
    let metrics = fetch("/metrics");
    assert!(
        metrics.starts_with("HTTP/1.1 200 ") && metrics.trim_end().ends_with("# EOF"),
        "{metrics}"
    );
    // The rest of the API isn't there.
    assert!(fetch("/v1/status").starts_with("HTTP/1.1 404 "));
    let second = format!(
        "[daemon]\nmetrics = \"127.0.0.1:9464\"\nsocket = \"/run/gate/other.sock\"\n{GATES}"
    );
    write(&topology, CONFIG, &second);
    let output = spawn_daemon(&topology).wait(LIMIT).unwrap();
    assert_eq!(output.code(), 1, "{output}");
    assert_complaint(&output, &["can't serve metrics at 127.0.0.1:9464"]);
    std::thread::sleep(MS * 10);
    stop_daemon(&daemon);
}
