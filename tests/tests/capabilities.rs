//! The unit's capabilities: gate does all its work with these and no others, and each is needed.
//! Needs root.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use common::{
    Clients, Dial, ENDPOINT, Ended, LIMIT, PORT, assert_refusal, dial, gate, listen_at, shell,
    wait_until_held,
};
use gate_tests::backend::Options;
use gate_tests::exe;
use gate_tests::listener;
use gate_tests::require::{Feature, has};
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Output, Process, Side, Topology, server_v4};

const UNIT: &str = include_str!("../../packaging/gate.service");

/// The capabilities of the unit, as `setpriv` names them.
fn of_unit() -> BTreeSet<String> {
    let set = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    set.split(' ')
        .map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase())
        .collect()
}

/// `gate` as the unit runs it: root with these capabilities, who never gets more, and may lock any
/// memory.
fn gate_with(capabilities: &BTreeSet<String>, args: &[&str]) -> Command {
    gate_that_locks("unlimited", capabilities, args)
}

/// The same, who may lock so many KiB.
fn gate_that_locks(kib: &str, capabilities: &BTreeSet<String>, args: &[&str]) -> Command {
    let set: String = capabilities.iter().map(|one| format!(",+{one}")).collect();
    // Where the test's own rights don't reach to lift it, it does not count, or what needs it fails.
    let line = format!("ulimit -l {kib} 2>/dev/null; exec \"$@\"");
    let mut command = Command::new("sh");
    command
        .args(["-c", &line, "sh", "setpriv"])
        .arg(format!("--bounding-set=-all{set}"))
        .args(["--inh-caps=-all", "--no-new-privs"])
        .arg(exe::gate().unwrap())
        .args(args);
    command
}

fn run(topology: &Topology, capabilities: &BTreeSet<String>, args: &[&str]) -> Output {
    let mut command = gate_with(capabilities, args);
    topology.output(Side::Server, &mut command, LIMIT).unwrap()
}

/// Starts the lab's backend as another user, with its socket; none of it is root's.
fn of_another_user(topology: &Topology, address: SocketAddr) -> Process {
    let lab = exe::lab().unwrap();
    shell(
        topology,
        Side::Server,
        &format!(
            "touch /run/lab && mount --bind '{}' /run/lab",
            lab.display()
        ),
    );
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["/run/lab", "backend"])
        .args(Options::new(address).to_args());
    let process = topology.spawn(Side::Server, &mut command).unwrap();
    let listens = || listener::wait_until(address, true, LIMIT);
    topology.run(Side::Server, listens).unwrap();
    process
}

#[test]
fn with_the_units_capabilities_gate_does_all_its_work() {
    let topology = Topology::new().unwrap();
    let all = of_unit();
    #[track_caller]
    fn done(topology: &Topology, args: &[&str]) -> Output {
        let output = run(topology, &of_unit(), args);
        assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
        output
    }
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    let local = "127.0.0.1:8081";
    let _local = listen_at(&topology, Side::Server, local.parse().unwrap());
    for hook in ["xdp-generic", "tc"] {
        done(&topology, &["up", INTERFACE, "--hook", hook]);
        done(&topology, &["up", "lo"]);
        done(&topology, &["define", "web", ENDPOINT]);
        done(&topology, &["hold", "web", local]);
        let clients = [
            Clients::one(&topology, server_v4(PORT)),
            Clients::one_at(&topology, Side::Server, local.parse().unwrap()),
        ];
        wait_until_held(&topology, "web", 1);
        wait_until_held(&topology, local, 1);
        done(&topology, &["open", "web", local]);
        for (client, endpoint) in clients.into_iter().zip(["web", local]) {
            client.finish_released(&topology, endpoint);
        }
        done(&topology, &["guard", "web"]);
        done(&topology, &["guard", "web", "--off"]);
        done(&topology, &["reject", "web"]);
        let refused = dial(&topology, Side::Client, Dial::to(server_v4(PORT)));
        assert_eq!(refused.finish(), Ended::Refused);
        done(&topology, &["open", "web"]);
        let restarted = run(&topology, &all, &["restart", "web", "--", "true"]);
        assert_eq!(restarted.code(), 0, "{restarted}");
        done(&topology, &["alias", "web", "10.0.0.5:81"]);
        done(&topology, &["soft-stop", "web"]);
        done(&topology, &["soft-start", "web"]);
        done(&topology, &["status"]);
        done(&topology, &["flush", "web"]);
        done(&topology, &["down"]);
    }
    let doctor = run(&topology, &all, &["doctor", "--json"]);
    assert_eq!(common::json(&doctor)["works"], true, "{doctor}");
}

#[test]
fn a_limit_of_locked_memory_is_named_where_maps_count_to_it() {
    let topology = Topology::new().unwrap();
    let limited = |args: &[&str]| {
        let mut command = gate_that_locks("64", &of_unit(), args);
        topology.output(Side::Server, &mut command, LIMIT).unwrap()
    };
    let doctor = limited(&["doctor"]);
    let up = limited(&["up", INTERFACE]);
    match doctor.stdout.contains("maps count as locked memory") {
        true => assert_refusal(&up, 4, &["64 KiB", "ulimit -l unlimited"]),
        false => assert_eq!(up.code(), 0, "{up}"),
    }
}

#[test]
fn with_the_units_capabilities_a_gate_is_handed_over() {
    let topology = Topology::new().unwrap();
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    let _other = of_another_user(&topology, server_v4(8082));
    let output = run(
        &topology,
        &of_unit(),
        &["handover", ENDPOINT, "--to", "10.0.0.5:8082"],
    );
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    gate(&topology, &["down"]);
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let elsewhere = "10.0.0.1:8080";
    let _backends = [elsewhere, "10.0.0.1:8082"]
        .map(|at| listen_at(&topology, Side::Client, at.parse().unwrap()));
    let output = run(
        &topology,
        &of_unit(),
        &["handover", elsewhere, "--to", "10.0.0.1:8082"],
    );
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    gate(&topology, &["down"]);
}

/// What fails without a capability, and what it says.
fn without(topology: &Topology, capability: &str) {
    let mut rest = of_unit();
    assert!(rest.remove(capability), "the unit has no {capability}");
    let name = format!("CAP_{}", capability.to_uppercase());
    let output = match capability {
        "bpf" | "perfmon" | "net_admin" => run(topology, &rest, &["up", INTERFACE]),
        "net_raw" => {
            gate(topology, &["up", "lo"]);
            run(topology, &rest, &["hold", "127.0.0.1:8080"])
        }
        "sys_ptrace" | "dac_read_search" => {
            let _service = Service::start(topology, Options::new(server_v4(PORT))).unwrap();
            let _other = of_another_user(topology, server_v4(8082));
            run(
                topology,
                &rest,
                &["handover", ENDPOINT, "--to", "10.0.0.5:8082"],
            )
        }
        other => panic!("no test tells why the unit needs {other}"),
    };
    assert_refusal(&output, 4, &[&name]);
}

#[test]
fn without_one_of_the_units_capabilities_something_fails_and_names_it() {
    for capability in of_unit() {
        without(&Topology::new().unwrap(), &capability);
    }
}
