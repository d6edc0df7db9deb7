//! Debian's package on a machine of its own: installed, upgraded with a gate closed, removed, purged;
//! the daemon under its unit; and the examples for systemd. Needs root, systemd and dpkg.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use gate_tests::exe;
use gate_tests::machine::Machine;
use gate_tests::require::allowed_by;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(40);
const MS: Duration = Duration::from_millis(1);
const ENDPOINT: &str = "127.0.0.1:8080";
/// A client whose SYN was held got through without sending it again.
const BEFORE_RETRANSMISSION: Duration = Duration::from_millis(900);

/// Whether this host can try packages at all.
fn can_run() -> bool {
    allowed_by("GATE_TEST_NO_DEB")
}

/// A machine that has the package as a file, and the lab's backend.
fn machine() -> Machine {
    let package = std::env::var_os("GATE_TEST_DEB").expect(
        "run `cargo xtask test`, or make a package by `cargo xtask deb` and set GATE_TEST_DEB",
    );
    let (package, lab) = (PathBuf::from(package), exe::lab().unwrap());
    Machine::boot(&[(&package, "/gate.deb"), (&lab, "/lab")]).unwrap()
}

/// A machine with the package installed, the gate up at `lo`, and a backend; none where this host can't
/// try packages.
fn installed() -> Option<Machine> {
    if !can_run() {
        return None;
    }
    let machine = machine();
    ok(&machine, "dpkg -i /gate.deb");
    ok(
        &machine,
        &format!("systemd-run --quiet --unit=web /lab backend --listen {ENDPOINT}"),
    );
    ok(&machine, "gate up lo");
    Some(machine)
}

#[track_caller]
fn ok(machine: &Machine, line: &str) -> String {
    machine.ok(line).unwrap()
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let late = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < late, "not in time: {what}");
        sleep(MS * 20);
    }
}

/// What `gate status` tells of a gate; null where there is none.
fn status(machine: &Machine, gate: &str) -> Value {
    let text = ok(machine, "gate status --json");
    let status: Value = serde_json::from_str(&text).unwrap();
    let gates = status["gates"].as_array().cloned().unwrap_or_default();
    gates
        .into_iter()
        .find(|one| one["gate"] == gate)
        .unwrap_or_default()
}

/// The daemon's process.
fn daemon(machine: &Machine) -> u32 {
    let text = ok(machine, "systemctl show gate -P MainPID");
    text.trim().parse().unwrap()
}

fn is_active(machine: &Machine, unit: &str) -> bool {
    machine
        .run(&format!("systemctl is-active {unit}"))
        .unwrap()
        .code
        == Some(0)
}

/// Connects as a client in the machine does; how long it took.
fn connect(machine: &Machine, to: &str) -> Result<Duration, std::io::ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let connected = machine.in_network(|| {
        let start = Instant::now();
        let connected = TcpStream::connect_timeout(&to, LIMIT);
        Ok(connected.map(|_| start.elapsed()).map_err(|e| e.kind()))
    });
    connected.unwrap()
}

/// Does `work` while a client waits at the closed gate, which `work` opens; nobody else does.
#[track_caller]
fn with_held_client(machine: &Machine, work: impl FnOnce(&dyn Fn() -> bool)) {
    ok(machine, &format!("gate hold {ENDPOINT} --for 1m"));
    let is_through = AtomicBool::new(false);
    let (opened, through) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            connect(machine, ENDPOINT).unwrap();
            is_through.store(true, Ordering::Release);
            Instant::now()
        });
        wait_until("a SYN is held", || status(machine, ENDPOINT)["held"] == 1);
        work(&|| is_through.load(Ordering::Acquire));
        (Instant::now(), client.join().unwrap())
    });
    let late = through.saturating_duration_since(opened);
    assert!(late < BEFORE_RETRANSMISSION, "{late:?} after the opening");
}

/// All files, but for those that dpkg, systemd and the manual's index have of their own.
fn files(machine: &Machine) -> BTreeSet<String> {
    let text = ok(
        machine,
        "find /etc /usr /var /opt /run/gate -xdev 2>/dev/null || true",
    );
    let others = [
        "/var/lib/dpkg/",
        "/var/log/",
        "/var/cache/man",
        "/var/lib/systemd/deb-systemd-helper-",
        "/var/lib/systemd/catalog",
        "/etc/group",
        "/etc/gshadow",
        "/etc/.pwd.lock",
    ];
    text.lines()
        .filter(|path| !others.iter().any(|other| path.starts_with(other)))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_package_installs_upgrades_with_a_gate_closed_and_leaves_cleanly() {
    if !can_run() {
        return;
    }
    let before = files(&machine());
    let Some(machine) = installed() else {
        return;
    };
    assert!(is_active(&machine, "gate"));
    let of_socket = ok(&machine, "stat -c '%U:%G %a' /run/gate/gate.sock /run/gate");
    assert_eq!(of_socket, "root:gate 660\nroot:gate 750\n");
    for page in ["gate", "gate-hold", "gate-daemon"] {
        ok(&machine, &format!("man -w {page}"));
    }
    ok(
        &machine,
        "bash -n /usr/share/bash-completion/completions/gate",
    );
    ok(&machine, "echo '# mine' >> /etc/gate/gate.toml");

    // The upgrade: the same, with another version.
    ok(
        &machine,
        "cd /tmp && dpkg-deb -R /gate.deb tree && \
         sed -i 's/^Version: .*/Version: 99/' tree/DEBIAN/control && \
         dpkg-deb --root-owner-group -Znone -b tree next.deb",
    );
    let first = daemon(&machine);
    with_held_client(&machine, |is_through| {
        ok(&machine, "dpkg -i /tmp/next.deb");
        assert_eq!(ok(&machine, "dpkg-query -W -f '${Version}' gate"), "99");
        assert!(is_active(&machine, "gate"));
        assert_ne!(daemon(&machine), first, "the daemon was not restarted");
        let gate = status(&machine, ENDPOINT);
        assert_eq!((&gate["mode"], &gate["held"]), (&"hold".into(), &1.into()));
        assert!(!is_through());
        ok(&machine, &format!("gate open {ENDPOINT}"));
    });
    assert!(ok(&machine, "cat /etc/gate/gate.toml").ends_with("# mine\n"));

    // Removed, it opens and leaves its configuration.
    with_held_client(&machine, |_| {
        ok(&machine, "dpkg -r gate");
    });
    assert!(!is_active(&machine, "gate"));
    for gone in ["/sys/fs/bpf/gate", "/run/gate", "/usr/sbin/gate"] {
        assert_ne!(
            machine.run(&format!("test -e {gone}")).unwrap().code,
            Some(0),
            "{gone}"
        );
    }
    ok(&machine, "test -e /etc/gate/gate.toml && getent group gate");

    // Purged, it leaves nothing.
    ok(&machine, "dpkg -P gate");
    assert_ne!(machine.run("getent group gate").unwrap().code, Some(0));
    let after = files(&machine);
    let left: Vec<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_daemon_runs_in_the_units_sandbox() {
    let Some(machine) = installed() else {
        return;
    };
    let id = daemon(&machine);
    let status = ok(&machine, &format!("cat /proc/{id}/status"));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    // Bits 2, 12, 13, 19, 38 and 39.
    assert_eq!(field("CapEff:"), "000000c000083004");
    assert_eq!(field("CapBnd:"), "000000c000083004");
    assert_eq!((&*field("NoNewPrivs:"), &*field("Seccomp:")), ("1", "2"));
    let inside = format!("nsenter --mount --target {id}");
    for path in [
        "/etc/new",
        "/usr/new",
        "/sys/fs/cgroup/new",
        "/proc/sys/net/ipv4/ip_forward",
    ] {
        let line = format!("{inside} sh -c 'echo 1 > {path}'");
        let printed = machine.run(&line).unwrap();
        assert!(
            printed.text.contains("Read-only"),
            "{path}: {}",
            printed.text
        );
    }
    ok(
        &machine,
        &format!("{inside} mkdir /sys/fs/bpf/one && rmdir /sys/fs/bpf/one"),
    );
    ok(&machine, "systemctl reload gate");
    assert_eq!(daemon(&machine), id);
    // Nothing that it wanted was refused.
    let warnings = ok(
        &machine,
        "journalctl --no-pager -q -u gate -p warning _COMM=gate",
    );
    assert_eq!(warnings, "");
}

#[test]
fn a_daemon_that_dies_or_hangs_is_back_and_its_gates_stayed() {
    let Some(machine) = installed() else {
        return;
    };
    ok(
        &machine,
        "mkdir -p /etc/systemd/system/gate.service.d && \
         printf '[Service]\\nWatchdogSec=2\\n' > /etc/systemd/system/gate.service.d/watchdog.conf && \
         systemctl daemon-reload && systemctl restart gate",
    );
    for (signal, result) in [("KILL", "signal"), ("STOP", "watchdog")] {
        let first = daemon(&machine);
        with_held_client(&machine, |is_through| {
            ok(&machine, &format!("kill -{signal} {first}"));
            wait_until("it is back", || {
                is_active(&machine, "gate") && ![0, first].contains(&daemon(&machine))
            });
            let gate = status(&machine, ENDPOINT);
            assert_eq!((&gate["mode"], &gate["held"]), (&"hold".into(), &1.into()));
            assert!(!is_through());
            ok(&machine, &format!("gate open {ENDPOINT}"));
        });
        let journal = ok(&machine, "journalctl --no-pager -u gate -o cat");
        assert!(
            journal.contains(&format!("Failed with result '{result}'")),
            "{journal}"
        );
    }
}

#[test]
fn with_pins_of_another_version_the_daemon_says_what_to_do_and_then_goes_on() {
    let Some(machine) = installed() else {
        return;
    };
    ok(
        &machine,
        &format!(
            "systemctl stop gate && mv /sys/fs/bpf/gate/v* /sys/fs/bpf/gate/v1 && \
             printf '[gate.web]\\nendpoints = [\"{ENDPOINT}\"]\\n' > /etc/gate/conf.d/web.toml"
        ),
    );
    ok(&machine, "systemctl start gate");
    let told = ok(&machine, "systemctl show gate -P StatusText");
    for part in [
        "not applied",
        "made by another version of gate",
        "run `gate down`",
    ] {
        assert!(told.contains(part), "no {part}: {told}");
    }
    ok(&machine, "gate down && systemctl reload gate");
    assert_eq!(status(&machine, "web")["mode"], "open");
    let told = ok(&machine, "systemctl show gate -P StatusText");
    assert!(!told.contains("not applied"), "{told}");
}

#[test]
fn a_purge_knows_the_daemons_socket_from_its_configuration() {
    let Some(machine) = installed() else {
        return;
    };
    let set = |socket: &str| {
        let line = format!("printf '[daemon]\\nsocket = \"{socket}\"\\n' > /etc/gate/gate.toml");
        ok(&machine, &line);
    };
    set("/run/gate/other.sock");
    ok(&machine, "systemctl restart gate");
    let refused = machine.run("gate purge").unwrap();
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.text.contains("/run/gate/other.sock"), "{refused:?}");
    ok(&machine, "test -e /sys/fs/bpf/gate && systemctl stop gate");

    // What a killed daemon left goes; what is no socket stays.
    set("/run/left.sock");
    ok(
        &machine,
        "perl -MIO::Socket::UNIX -e \
         'IO::Socket::UNIX->new(Local => \"/run/left.sock\", Listen => 1) or die'",
    );
    let purged = ok(&machine, "gate purge");
    assert!(purged.contains("removed /run/left.sock\n"), "{purged}");
    ok(&machine, "test ! -e /run/left.sock && touch /run/left.sock");
    assert_eq!(ok(&machine, "gate purge"), "there was no trace of gate\n");
    ok(&machine, "test -e /run/left.sock");
}

#[test]
fn the_journal_has_what_happened_by_fields() {
    let Some(machine) = installed() else {
        return;
    };
    ok(
        &machine,
        &format!(
            "printf '[gate.web]\\nendpoints = [\"{ENDPOINT}\"]\\ninterfaces = [\"lo\"]\\n\
             [[gate.web.check]]\\ntcp = \"{ENDPOINT}\"\\ninterval = \"100ms\"\\n\
             [[gate.web.check]]\\nexec = \"test -r /etc/passwd\"\\ninterval = \"100ms\"\\n' \
             > /etc/gate/conf.d/web.toml && systemctl reload gate"
        ),
    );
    let told = |what: &str| {
        let line = format!("journalctl --no-pager -u gate -o json GATE=web GATE_EVENT={what}");
        ok(&machine, &line).lines().count()
    };
    wait_until("the backend is up", || told("up") == 1);
    assert_eq!(told("defined"), 1);
    ok(&machine, "systemctl stop web");
    wait_until("it is down, and held", || {
        told("down") == 1 && told("closed") == 1
    });
    let held = ok(
        &machine,
        "journalctl --no-pager -u gate -o cat GATE_EVENT=closed GATE_MODE=hold PRIORITY=5",
    );
    assert!(held.starts_with("web: closed (hold)"), "{held}");
    // A configuration that is wrong fails the reload, and changes nothing.
    ok(&machine, "echo 'colour = 1' >> /etc/gate/conf.d/web.toml");
    let failed = machine.run("systemctl reload gate").unwrap();
    assert_ne!(failed.code, Some(0), "{failed:?}");
    assert_eq!(told("forgotten"), 0);
    wait_until("the journal has it", || {
        let line = "journalctl --no-pager -u gate -o cat GATE_EVENT=failed";
        ok(&machine, line).contains("web.toml:10:1: unknown key `colour`")
    });
}

#[test]
fn systemd_finds_no_fault_with_the_unit_and_the_examples() {
    let Some(machine) = installed() else {
        return;
    };
    let examples = "/usr/share/doc/gate/examples/systemd";
    ok(
        &machine,
        &format!(
            "cp -r {examples}/*.service {examples}/*.service.d /etc/systemd/system/ && \
             printf '[Service]\\nType=simple\\nExecStart=/lab backend --listen 127.0.0.1:80\\n' \
             > /etc/systemd/system/nginx.service"
        ),
    );
    for unit in [
        "gate.service",
        "nginx.service",
        "gate-restart@web.service",
        "gate-guard@web.service",
    ] {
        let said = ok(&machine, &format!("systemd-analyze verify {unit}"));
        assert_eq!(said, "", "{unit}");
    }
}

#[test]
fn the_units_exposure_is_under_three() {
    if !can_run() {
        return;
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/gate.service");
    let output = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "--offline=true"])
        .arg(unit)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let level = text
        .lines()
        .find_map(|line| {
            line.split("Overall exposure level for gate.service: ")
                .nth(1)
        })
        .and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok())
        .unwrap_or_else(|| panic!("{output:?}"));
    assert!(level < 3.0, "{text}");
}

/// Connects again and again, as long as `work` is under way; how many were refused, of how many.
fn under_load(machine: &Machine, to: &str, work: impl FnOnce()) -> (usize, usize) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut refused, mut all) = (0, 0);
            while !is_over.load(Ordering::Acquire) {
                all += 1;
                refused += usize::from(connect(machine, to).is_err());
                sleep(MS * 5);
            }
            (refused, all)
        });
        sleep(MS * 200);
        work();
        sleep(MS * 200);
        is_over.store(true, Ordering::Release);
        load.join().unwrap()
    })
}

#[test]
fn the_examples_keep_a_services_restart_from_refusing_anybody() {
    let Some(machine) = installed() else {
        return;
    };
    let examples = "/usr/share/doc/gate/examples/systemd";
    // Any server that writes its process's number there does for nginx; this one is slow to start.
    ok(
        &machine,
        "printf '[Service]\\nExecStartPre=/bin/sleep 0.3\\n\
         ExecStart=/lab backend --listen 127.0.0.1:80 --pid-file /run/nginx.pid\\n\
         ExecStartPost=/bin/sh -c \"until ss -Hltn sport = :80 | grep -q . ; do sleep 0.01; done\"\\n' \
         > /etc/systemd/system/nginx.service && systemctl daemon-reload && systemctl start nginx",
    );
    let restart = || {
        ok(&machine, "systemctl restart nginx");
    };
    let (refused, _) = under_load(&machine, "127.0.0.1:80", restart);
    assert!(refused > 0, "without the drop-in some are refused");

    ok(
        &machine,
        &format!(
            "cp -r {examples}/nginx.service.d /etc/systemd/system/ && systemctl daemon-reload"
        ),
    );
    let (refused, all) = under_load(&machine, "127.0.0.1:80", restart);
    assert_eq!(refused, 0, "of {all}");
    assert_eq!(status(&machine, "*:80")["mode"], "open");

    ok(
        &machine,
        &format!(
            "cp {examples}/gate-restart@.service {examples}/gate-guard@.service /etc/systemd/system/ && \
             mkdir -p /etc/gate/restart && \
             printf 'ENDPOINT=127.0.0.1:81\\nOPTIONS=--quiesce 100ms --check tcp://127.0.0.1:81\\n' \
             > /etc/gate/restart/shop && \
             printf '[Service]\\nExecStartPre=/bin/sleep 0.3\\n\
             ExecStart=/lab backend --listen 127.0.0.1:81\\n' > /etc/systemd/system/shop.service && \
             systemctl daemon-reload && systemctl start shop"
        ),
    );
    wait_until("it listens", || connect(&machine, "127.0.0.1:81").is_ok());
    let (refused, all) = under_load(&machine, "127.0.0.1:81", || {
        ok(&machine, "systemctl start gate-restart@shop");
    });
    assert_eq!(refused, 0, "of {all}");

    ok(
        &machine,
        "gate define shop 127.0.0.1:81 && systemctl start gate-guard@shop",
    );
    wait_until("it is guarded", || {
        status(&machine, "shop")["guard"].is_object()
    });
    let (refused, all) = under_load(&machine, "127.0.0.1:81", || {
        ok(&machine, "systemctl restart shop");
    });
    assert_eq!(refused, 0, "of {all}");
    ok(&machine, "systemctl stop gate-guard@shop");
    assert!(status(&machine, "shop")["guard"].is_null());
}
