//! Pins that gate did not make, or not this gate, and two commands that want them at once. Needs root.

mod common;

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::bail;
use common::{
    CHANGES, ENDPOINT, LIMIT, PORT, ROOT, UNTIL_LET_GO, assert_refusal, attached, exists,
    find_gate, gate, let_go, mode, refused, shell, snapshot, start_restart, up, up_with_service,
};
use gate_common::abi::ABI_VERSION;
use gate_tests::backend::Options;
use gate_tests::foreign;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4};
use gate_userspace::error::Error;
use gate_userspace::pins::Pins;
use gate_userspace::sys;
use nix::fcntl::{Flock, FlockArg};

/// The inode of the server's network namespace.
fn namespace(topology: &Topology) -> u64 {
    topology
        .run(Side::Server, || {
            Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
        })
        .unwrap()
}

/// Does something to a path of the server's bpffs.
fn on_path(topology: &Topology, path: impl AsRef<Path>, f: fn(&Path) -> io::Result<()>) {
    let path = path.as_ref();
    topology.run(Side::Server, || Ok(f(path)?)).unwrap();
}

// ---- Pins that gate did not make, or not this gate ----

#[test]
fn pins_of_another_version_are_named_and_down_then_up_repairs_that() {
    let own = format!("v{ABI_VERSION}");
    let topology = Topology::new().unwrap();
    let folder = format!("{ROOT}/v0/{}", namespace(&topology));
    shell(
        &topology,
        Side::Server,
        &format!("umask 077; mkdir -p {folder}"),
    );
    for args in CHANGES
        .into_iter()
        .chain([&["status"][..], &["up", INTERFACE]])
    {
        refused(
            &topology,
            args,
            1,
            &[&folder, "v0", &own, "`gate down`", "`gate up`"],
        );
    }
    gate(&topology, &["down"]);
    assert!(!exists(&topology, ROOT));
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn pins_of_another_namespace_are_nobodys_business() {
    let topology = Topology::new().unwrap();
    shell(
        &topology,
        Side::Server,
        &format!("umask 077; mkdir -p {ROOT}/v0/7 {ROOT}/v{ABI_VERSION}/7"),
    );
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
    gate(&topology, &["down"]);
    let left = shell(
        &topology,
        Side::Server,
        &format!("ls -d {ROOT}/v0/7 {ROOT}/v{ABI_VERSION}/7"),
    );
    assert_eq!(left.lines().count(), 2, "{left}");
}

#[test]
fn a_pin_of_another_size_is_named_and_down_then_up_repairs_that() {
    let topology = up();
    let replaced = topology.run(Side::Server, || {
        let path = Pins::here()?.map("GATES");
        fs::remove_file(&path)?;
        sys::pin(foreign::array(16, 1024)?.as_fd(), &path)?;
        Ok(path)
    });
    let path = replaced.unwrap();
    for args in CHANGES
        .into_iter()
        .chain([&["status"][..], &["up", INTERFACE]])
    {
        let words = [path.to_str().unwrap(), "16 bytes", "8 bytes", "`gate down`"];
        refused(&topology, args, 1, &words);
    }
    gate(&topology, &["down"]);
    assert!(!attached(&topology, INTERFACE).is_any());
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn a_missing_pin_is_a_failure_of_one_line_and_down_then_up_repairs_that() {
    let topology = up();
    let path = topology
        .run(Side::Server, || Ok(Pins::here()?.map("HELD")))
        .unwrap();
    on_path(&topology, &path, |path| fs::remove_file(path));
    for args in CHANGES
        .into_iter()
        .chain([&["status"][..], &["up", INTERFACE]])
    {
        let words = [
            path.to_str().unwrap(),
            "missing",
            "`gate down`",
            "`gate up`",
        ];
        refused(&topology, args, 1, &words);
    }
    gate(&topology, &["down"]);
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn a_root_folder_that_others_can_enter_or_own_is_refused() {
    let open_it = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777));
    let give_it = |path: &Path| chown(path, Some(65534), None);
    let spoils: [fn(&Path) -> io::Result<()>; 2] = [open_it, give_it];
    for spoil in spoils {
        // One that somebody made before the first `gate up`.
        let topology = Topology::new().unwrap();
        on_path(&topology, ROOT, |path| fs::create_dir(path));
        on_path(&topology, ROOT, |path| {
            fs::set_permissions(path, Permissions::from_mode(0o700))
        });
        on_path(&topology, ROOT, spoil);
        refused(&topology, &["up", INTERFACE], 1, &[ROOT, "0700"]);
        assert!(!attached(&topology, INTERFACE).is_any());

        // One that was gate's own.
        let topology = up();
        on_path(&topology, ROOT, spoil);
        for args in CHANGES
            .into_iter()
            .chain([&["down"][..], &["up", INTERFACE]])
        {
            refused(&topology, args, 1, &[ROOT, "0700"]);
        }
        assert!(attached(&topology, INTERFACE).is_any());
    }
}

#[test]
fn pins_are_for_root_alone() {
    let topology = up();
    gate(&topology, &["hold", ENDPOINT]);
    let line = format!("find {ROOT} -printf '%y %m %U\\n' | sort -u");
    assert_eq!(shell(&topology, Side::Server, &line), "d 700 0\nf 600 0\n");
}

// ---- Two at once ----

fn take_lock(topology: &Topology) -> Flock<File> {
    let lock = topology.run(Side::Server, || {
        let file = File::open(ROOT)?;
        // Whoever closed a gate has it for a moment still.
        Ok(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?)
    });
    lock.unwrap()
}

#[test]
fn a_second_command_waits_for_the_first() {
    let topology = up();
    let lock = take_lock(&topology);
    let waiting = topology.spawn_gate(["hold", ENDPOINT]).unwrap();
    sleep(Duration::from_secs(1));
    assert!(!waiting.has_ended().unwrap());
    assert!(find_gate(&topology, ENDPOINT).is_none());
    drop(lock);
    let output = waiting.wait(LIMIT).unwrap();
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "hold");
}

#[test]
fn a_command_does_not_wait_forever_for_another() {
    let topology = up();
    let before = snapshot(&topology);
    let lock = take_lock(&topology);
    let all: Vec<_> = CHANGES
        .into_iter()
        .chain([&["down"][..], &["up", INTERFACE]])
        .map(|args| topology.spawn_gate(args).unwrap())
        .collect();
    for waiting in all {
        let output = waiting.wait(LIMIT).unwrap();
        assert_refusal(&output, 1, &["another gate command", ROOT, "try again"]);
    }
    drop(lock);
    assert_eq!(snapshot(&topology), before);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn a_restart_waits_for_another_command_only_to_open_its_gate() {
    let (topology, _service) = up_with_service();
    let restart = start_restart(&topology, &[], &["sh", "-c", UNTIL_LET_GO]);
    let lock = take_lock(&topology);
    let_go(&topology);
    // Longer than a command waits for it.
    sleep(Duration::from_secs(6));
    assert!(!restart.has_ended().unwrap());
    drop(lock);
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    // There is none.
    assert!(!output.stderr.contains("status port"), "{output}");
}

#[test]
fn twenty_commands_at_once_all_end_well() {
    let topology = up();
    let all: Vec<_> = (0..20)
        .map(|i| {
            let verb = ["hold", "drop", "reject", "open"][i % 4];
            topology.spawn_gate([verb, ENDPOINT]).unwrap()
        })
        .collect();
    for one in all {
        let output = one.wait(LIMIT).unwrap();
        assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    }
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(mode(&topology, ENDPOINT), "open");
}

#[test]
fn a_second_restart_of_the_same_endpoint_is_refused_and_the_first_ends_well() {
    let (topology, _service) = up_with_service();
    let first = start_restart(&topology, &[], &["sleep", "2"]);
    let args = ["restart", ENDPOINT, "--", "touch", "/run/second"];
    refused(&topology, &args, 1, &[ENDPOINT, "being restarted"]);
    // Nor is any other endpoint of the second's closed.
    let other = "10.0.0.5:9090";
    let args = ["restart", other, ENDPOINT, "--", "touch", "/run/second"];
    let output = topology.gate(args).unwrap();
    assert_refusal(&output, 1, &[ENDPOINT, "being restarted"]);
    assert!(find_gate(&topology, other).is_none_or(|gate| gate.mode.name() == "open"));
    assert!(!exists(&topology, "/run/second"));

    assert!(!first.has_ended().unwrap());
    let output = first.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "open");
}

#[test]
fn restarts_of_two_endpoints_at_once_both_end_well() {
    let topology = up();
    let other = server_v4(9090);
    let _services =
        [server_v4(PORT), other].map(|at| Service::start(&topology, Options::new(at)).unwrap());
    let both = [ENDPOINT.to_owned(), other.to_string()].map(|endpoint| {
        topology
            .spawn_gate(["restart", &endpoint, "--", "sleep", "0.5"])
            .unwrap()
    });
    for one in both {
        let output = one.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
    }
}

#[test]
fn a_folder_that_goes_between_two_looks_at_it_is_made_anew_or_is_not_there() {
    let topology = Topology::new().unwrap();
    let make = || {
        let pins = Pins::here()?;
        for _ in 0..10_000 {
            let lock = pins.lock_or_create()?;
            pins.remove_empty(lock);
        }
        Ok(())
    };
    let take = || {
        let pins = Pins::here()?;
        for _ in 0..10_000 {
            match pins.try_lock() {
                Err(Error::NotUp) | Ok(None) => {}
                taken => bail!("{taken:?}"),
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running = [
            scope.spawn(|| topology.run(Side::Server, make)),
            scope.spawn(|| topology.run(Side::Server, make)),
            scope.spawn(|| topology.run(Side::Server, take)),
        ];
        for one in running {
            one.join().unwrap().unwrap();
        }
    });
}
