//! `gate plan` and `gate apply`: what is live becomes what the configuration says, all of it or
//! nothing, and what people made is left alone. Needs root.

mod common;

use std::cmp::Reverse;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Instant;

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, LIMIT, MS, PORT, ROOT, attached, close, connect_once,
    count, exists, find_gate, gate, gate_by_filters, gate_status, json, listen, mode, refused,
    restart, shell, snapshot, start_gate, status, tc_state, try_by_filters, up, wait_until,
    wait_until_counted, wait_until_held,
};
use gate_common::abi::Counter;
use gate_common::flow::EndpointKey;
use gate_tests::backend::Options;
use gate_tests::topology::{INTERFACE, Output, Process, SCRATCH, Side, Topology, server_v4};
use gate_tests::{exe, foreign, listener};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::interfaces;
use gate_userspace::pins::Pins;
use gate_userspace::sys;
use nix::sys::signal::Signal;
use serde_json::Value;

const PATH: &str = "/run/gate.toml";

/// Writes the configuration.
fn configure(topology: &Topology, text: &str) {
    assert!(PATH.starts_with(SCRATCH));
    topology
        .run(Side::Server, || Ok(fs::write(PATH, text)?))
        .unwrap();
}

#[track_caller]
fn apply(topology: &Topology, text: &str) -> Output {
    configure(topology, text);
    gate(topology, &["apply", "--config", PATH])
}

/// Makes the interface `eth7`, which is up.
fn add_interface(topology: &Topology) {
    let line = "ip link add eth7 type veth peer name eth8 && ip link set eth7 up";
    shell(topology, Side::Server, line);
}

/// Starts a process that listens there.
#[track_caller]
fn serve(topology: &Topology, address: SocketAddr) -> Process {
    let mut command = Command::new(exe::lab().unwrap());
    command.arg("backend").args(Options::new(address).to_args());
    let process = topology.spawn(Side::Server, &mut command).unwrap();
    let wait = || listener::wait_until(address, true, LIMIT);
    topology.run(Side::Server, wait).unwrap();
    process
}

/// What was changed, each as `SIGN TEXT`.
#[track_caller]
fn applied(topology: &Topology, text: &str) -> Vec<String> {
    configure(topology, text);
    changes(&json(&gate(
        topology,
        &["apply", "--json", "--config", PATH],
    )))
}

#[track_caller]
fn planned(topology: &Topology, text: &str) -> Value {
    configure(topology, text);
    let before = snapshot(topology);
    let fields = json(&gate(topology, &["plan", "--json", "--config", PATH]));
    assert_eq!(snapshot(topology), before, "a plan changes nothing");
    fields
}

fn changes(fields: &Value) -> Vec<String> {
    let word = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let all = fields["changes"].as_array().unwrap();
    all.iter()
        .map(|it| format!("{} {}", word(it, "sign"), word(it, "text")))
        .collect()
}

/// The configuration must be refused with this code and these words, and change nothing.
#[track_caller]
fn assert_refused(topology: &Topology, text: &str, code: i32, words: &[&str]) {
    configure(topology, text);
    refused(topology, &["apply", "--config", PATH], code, words);
}

const WEB: &str = "[gate.web]\nendpoints = ['10.0.0.5:8080']\ninterfaces = ['eth0']\n";
const GUARDED: &str = "[gate.web]\nendpoints = ['10.0.0.5:8080']\ninterfaces = ['eth0']\n\
                       mode = 'guard'\nmax_hold = '20s'\n";

#[test]
fn a_configuration_is_planned_applied_and_then_so() {
    let topology = Topology::new().unwrap();
    let text = format!("[daemon]\nheld = 1000\n{GUARDED}[gate.db]\nendpoints = ['*:5432']\n");
    let expected = [
        "+ attach lo (auto)",
        "+ attach eth0 (auto)",
        "+ define db: *:5432",
        "+ define web: 10.0.0.5:8080",
        "+ guard web for 20s",
    ];
    let plan = planned(&topology, &text);
    assert_eq!(changes(&plan), expected);
    assert!(!exists(&topology, ROOT));
    assert_eq!(applied(&topology, &text), expected);
    let web = gate_status(&topology, "web");
    assert_eq!(web.guard.map(|guard| guard.lease), Some(MS * 20_000));
    assert_eq!(status(&topology).held_max, 1000);
    assert!(attached(&topology, INTERFACE).is_any());
    let before = snapshot(&topology);
    let again = gate(&topology, &["apply", "--config", PATH]);
    assert_eq!(again.stdout, "all was so already\n");
    assert_eq!(snapshot(&topology), before);
    let plan = gate(&topology, &["plan", "--config", PATH]);
    assert_eq!(plan.stdout, "nothing to change\n");
    // Nothing in the file: nothing is left of it.
    let gone = [
        "- guard web no more",
        "- forget db, with *:5432",
        "- forget web, with 10.0.0.5:8080",
        "- detach lo",
        "- detach eth0",
    ];
    let plan = changes(&planned(&topology, ""));
    assert_eq!(applied(&topology, ""), plan);
    let mut plan = plan;
    plan.sort();
    let mut gone = gone.map(str::to_owned);
    gone.sort();
    assert_eq!(plan, gone);
    assert!(status(&topology).gates.is_empty());
    assert!(!attached(&topology, INTERFACE).is_any());
}

#[test]
fn a_configured_guard_holds_and_an_open_mode_releases() {
    let topology = Topology::new().unwrap();
    apply(&topology, GUARDED);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, "web", 1);
    let _listener = listen(&topology, server_v4(PORT));
    let output = apply(&topology, WEB);
    assert!(output.stdout.contains("- guard web no more"), "{output}");
    let took = client.finish_connected();
    // On a busy machine its client may have sent it again in between.
    let released = count(&topology, "web", Counter::Released);
    assert!(released == 1 || took > BEFORE_RETRANSMISSION, "{took:?}");
    assert!(gate_status(&topology, "web").guard.is_none());
    assert_eq!(mode(&topology, "web"), "open");
    // The name does what it did by hand.
    gate(&topology, &["hold", "web"]);
    assert_eq!(mode(&topology, "web"), "hold");
}

#[test]
fn a_gate_goes_on_through_a_change_of_another() {
    let topology = Topology::new().unwrap();
    let db =
        |port: u16| format!("[gate.db]\nendpoints = ['10.0.0.5:{port}']\ninterfaces = ['eth0']\n");
    apply(&topology, &(GUARDED.to_owned() + &db(5432)));
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, "web", 1);
    let held = count(&topology, "web", Counter::Held);
    let pins = "find /sys/fs/bpf -name '*-web*' -printf '%P %i %C@\\n' | sort";
    let names = shell(&topology, Side::Server, pins);
    let changed = applied(&topology, &(GUARDED.to_owned() + &db(5433)));
    assert_eq!(changed, ["~ define db: +10.0.0.5:5433, -10.0.0.5:5432"]);
    assert_eq!(shell(&topology, Side::Server, pins), names);
    assert_eq!(gate_status(&topology, "web").waiting.held, 1);
    assert_eq!(count(&topology, "web", Counter::Held), held);
    let _listener = listen(&topology, server_v4(PORT));
    client.finish_connected();
}

#[test]
fn what_was_made_by_hand_is_left_alone() {
    let topology = up();
    gate(&topology, &["define", "mine", "10.0.0.5:1000"]);
    gate(&topology, &["guard", "mine"]);
    let output = apply(&topology, WEB);
    assert!(
        output
            .stdout
            .contains("mine is no gate of the configuration"),
        "{output}"
    );
    gate(&topology, &["guard", "web"]);
    let output = apply(&topology, WEB);
    assert!(
        output
            .stdout
            .contains("web is guarded by hand, and stays so"),
        "{output}"
    );
    assert!(gate_status(&topology, "web").guard.is_some());
    // It is the configuration's gate all the same, and goes with it.
    apply(&topology, "");
    assert!(find_gate(&topology, "web").is_none());
    assert!(gate_status(&topology, "mine").guard.is_some());
    assert!(
        attached(&topology, INTERFACE).is_any(),
        "`gate up` did that"
    );
    // An endpoint of another's gate is not to be had.
    let text = "[gate.web]\nendpoints = ['10.0.0.5:1000']\ninterfaces = ['eth0']\n";
    assert_refused(
        &topology,
        text,
        3,
        &["belongs to gate mine", "gate forget mine"],
    );
}

#[test]
fn a_gate_of_the_same_name_is_taken_over() {
    let topology = up();
    gate(&topology, &["define", "web", ENDPOINT]);
    let took = ["~ take web over, which was defined so by hand"];
    assert_eq!(applied(&topology, WEB), took);
    assert_eq!(applied(&topology, WEB), [] as [&str; 0]);
    assert_eq!(applied(&topology, ""), ["- forget web, with 10.0.0.5:8080"]);
    // One that is forgotten and made anew by hand is nobody's again.
    apply(&topology, WEB);
    gate(&topology, &["forget", "web"]);
    gate(&topology, &["define", "web", ENDPOINT]);
    assert_eq!(applied(&topology, ""), [] as [&str; 0]);
    assert!(find_gate(&topology, "web").is_some());
}

#[test]
fn a_closed_gate_is_neither_changed_nor_forgotten() {
    let topology = Topology::new().unwrap();
    apply(&topology, GUARDED);
    gate(&topology, &["hold", "web", "--for", "60s"]);
    let other = WEB.replace("8080", "8081") + "[gate.new]\nendpoints = ['10.0.0.5:1']\n";
    let words = ["web is closed", "gate open web"];
    assert_refused(&topology, &other, 3, &words);
    assert_refused(&topology, "", 3, &words);
    let plan = planned(&topology, &other);
    assert!(
        plan["obstacles"][0].as_str().unwrap().contains(words[0]),
        "{plan}"
    );
    // What concerns another gate, or only the guard, is done meanwhile.
    let text = GUARDED.replace("20s", "10s")
        + "[gate.new]\nendpoints = ['10.0.0.5:1']\n\
                                                interfaces = ['eth0']\n";
    let expected = ["+ define new: 10.0.0.5:1", "~ guard web for 10s, not 20s"];
    assert_eq!(applied(&topology, &text), expected);
    assert_eq!(mode(&topology, "web"), "hold");
    gate(&topology, &["open", "web"]);
    apply(&topology, &other);
}

#[test]
fn an_endpoint_moves_from_one_gate_to_another() {
    let topology = Topology::new().unwrap();
    let text = |a: &str, b: &str| {
        format!(
            "[defaults]\ninterfaces = ['eth0']\n[gate.a]\nendpoints = [{a}]\n[gate.b]\nendpoints = [{b}]\n"
        )
    };
    apply(&topology, &text("'*:80', '*:81'", "'*:82'"));
    let moved = applied(&topology, &text("'*:80'", "'*:81', '*:82'"));
    assert_eq!(moved, ["~ define a: -*:81", "~ define b: +*:81"]);
    let endpoints = |name: &str| gate_status(&topology, name).gate.endpoints.len();
    assert_eq!((endpoints("a"), endpoints("b")), (1, 2));
    // Also to one with another name.
    let text =
        "[defaults]\ninterfaces = ['eth0']\n[gate.c]\nendpoints = ['*:80', '*:81', '*:82']\n";
    apply(&topology, text);
    assert_eq!(endpoints("c"), 3);
    assert_eq!(status(&topology).gates.len(), 1);
    gate(&topology, &["reject", "c"]);
    for port in [80, 81, 82] {
        assert!(connect_once(&topology, server_v4(port)).result.is_err());
    }
    assert_eq!(count(&topology, "c", Counter::Rejected), 3);
}

#[test]
fn an_interface_that_is_not_there_yet_is_waited_for() {
    let topology = Topology::new().unwrap();
    let text = WEB.replace("'eth0'", "'eth0', 'eth7'");
    let output = apply(&topology, &text);
    assert!(
        output.stdout.contains("? waits for interface eth7"),
        "{output}"
    );
    let fields = planned(&topology, &text);
    assert_eq!(fields["awaited"][0], "interface eth7", "{fields}");
    add_interface(&topology);
    assert_eq!(applied(&topology, &text), ["+ attach eth7 (auto)"]);
    let output = gate(&topology, &["apply", "--config", PATH]);
    assert_eq!(output.stdout, "all was so already\n");
    // It goes, and comes back as another.
    shell(&topology, Side::Server, "ip link del eth7");
    apply(&topology, &text);
    add_interface(&topology);
    assert_eq!(applied(&topology, &text), ["+ attach eth7 (auto)"]);
    // Alone, too.
    let topology = Topology::new().unwrap();
    let output = apply(&topology, &WEB.replace("eth0", "eth7"));
    assert!(
        output.stdout.contains("? waits for interface eth7"),
        "{output}"
    );
    assert!(find_gate(&topology, "web").is_some());
}

#[test]
fn interfaces_that_are_not_named_are_found() {
    let topology = Topology::new().unwrap();
    let text =
        "[gate.near]\nendpoints = ['10.0.0.5:80']\n[gate.far]\nendpoints = ['10.0.0.1:80']\n";
    let made = applied(&topology, text);
    assert_eq!(made[..2], ["+ attach lo (auto)", "+ attach eth0 (tc)"]);
    // One that comes is attached to, and one that is down for a moment stays.
    add_interface(&topology);
    assert_eq!(applied(&topology, text), ["+ attach eth7 (auto)"]);
    shell(&topology, Side::Server, "ip link set eth7 down");
    assert_eq!(applied(&topology, text), [] as [&str; 0]);
    // Where nothing leads is not known yet.
    let text = text.to_owned() + "[gate.none]\nendpoints = ['192.0.2.1:80']\n";
    let output = apply(&topology, &text);
    assert!(
        output
            .stdout
            .contains("? waits for a route to 192.0.2.1:80"),
        "{output}"
    );
}

#[test]
fn interfaces_that_see_nothing_of_a_gate_are_refused() {
    let topology = Topology::new().unwrap();
    let text = "[gate.web]\nendpoints = ['127.0.0.1:80']\ninterfaces = ['eth0']\n";
    assert_refused(&topology, text, 3, &["127.0.0.1:80", "name the right ones"]);
    assert!(!exists(&topology, ROOT));
}

#[test]
fn the_hook_is_what_was_asked_for_or_nothing() {
    let topology = Topology::new().unwrap();
    // What can't be is told before anything is touched.
    let xdp = WEB.replace("'eth0'", "'lo', 'eth0'") + "hook = 'xdp'\n";
    assert_refused(&topology, &xdp, 1, &["lo can't take that hook"]);
    apply(&topology, &(WEB.to_owned() + "hook = 'tc-ingress'\n"));
    // More than there is comes on top.
    let more = applied(&topology, &(WEB.to_owned() + "hook = 'tc'\n"));
    assert_eq!(more, ["+ attach eth0 (tc-egress)"]);
    // What is asked for instead takes its place, unless a gate is closed.
    let generic = WEB.to_owned() + "hook = 'xdp-generic'\n";
    gate(&topology, &["hold", "web", "--for", "60s"]);
    assert_refused(&topology, &generic, 3, &["web is closed"]);
    gate(&topology, &["open", "web"]);
    let anew = ["- detach eth0", "+ attach eth0 (xdp-generic)"];
    assert_eq!(applied(&topology, &generic), anew);
    assert!(
        topology
            .run(Side::Server, || Ok(interfaces::list()?))
            .unwrap()
            .iter()
            .any(|it| it.xdp.is_some())
    );
    assert_eq!(applied(&topology, &generic), [] as [&str; 0]);
    // What was attached by hand stays.
    let topology = up();
    let words = [
        "attached with tc-ingress already, not xdp-generic",
        "gate down",
    ];
    assert_refused(&topology, &generic, 1, &words);
}

#[test]
fn what_fails_halfway_is_taken_back() {
    // Another's program is on the second interface, so nothing stays on the first, either.
    let topology = Topology::new().unwrap();
    add_interface(&topology);
    let program = foreign::xdp().unwrap();
    let index = |name: &str| {
        let line = format!("cat /sys/class/net/{name}/ifindex");
        shell(&topology, Side::Server, &line)
            .trim()
            .parse::<u32>()
            .unwrap()
    };
    let _link = topology
        .run(Side::Server, || {
            let generic = 2;
            Ok(sys::attach_xdp(program.as_fd(), index("eth7"), generic)?)
        })
        .unwrap();
    let text = WEB.replace("'eth0'", "'eth0', 'eth7'") + "hook = 'xdp-generic'\n";
    assert_refused(&topology, &text, 5, &["another XDP program"]);
    assert!(!exists(&topology, ROOT));

    // A pin is where the names' folder belongs: after the attachments nothing goes on.
    let topology = up();
    let spoil = || {
        let folder = Pins::here()?.folder();
        fs::remove_dir(folder.join("names"))?;
        let map = sys::open_pin(&folder.join("GATES"))?;
        Ok(sys::pin(map.as_fd(), &folder.join("names"))?)
    };
    topology.run(Side::Server, spoil).unwrap();
    let all = WEB.replace("'eth0'", "'eth0', 'lo'");
    assert_refused(&topology, &all, 1, &["mkdir", "names/1-web"]);
}

#[test]
fn the_last_step_s_failure_takes_all_back() {
    let topology = Topology::new().unwrap();
    let before = "[defaults]\ninterfaces = ['eth0']\n[gate.a]\nendpoints = ['10.0.0.5:80', '10.0.0.5:81']\n\
                  [gate.b]\nendpoints = ['10.0.0.5:82']\nmode = 'guard'\n";
    apply(&topology, before);
    gate(&topology, &["define", "mine", "10.0.0.5:1000"]);
    let _listener = serve(&topology, server_v4(8090));
    // What was made can't be noted: a pin is where the folder belongs.
    let folder = topology
        .run(Side::Server, || Ok(Pins::here()?.folder()))
        .unwrap();
    let note = folder.join("managed/gates");
    let spoil = || -> anyhow::Result<()> {
        fs::rename(folder.join("managed"), folder.join("aside"))?;
        fs::create_dir(folder.join("managed"))?;
        let map = sys::open_pin(&folder.join("GATES"))?;
        Ok(sys::pin(map.as_fd(), &note)?)
    };
    topology.run(Side::Server, spoil).unwrap();
    let state = |topology: &Topology| {
        let gates: Vec<String> = status(topology)
            .gates
            .iter()
            .map(|it| {
                format!(
                    "{} {:?} {:?} {:?} {:?}",
                    it.gate.id.0, it.gate, it.guard, it.handover, it.stats
                )
            })
            .collect();
        let index = Path::new("PORTS");
        let ports = topology.run(Side::Server, || {
            let map = sys::open_pin(&folder.join(index))?;
            let all = sys::lookup_all::<u32, u32>(map.as_fd())?;
            Ok(all
                .into_iter()
                .filter(|(_, entry)| *entry != 0)
                .collect::<Vec<_>>())
        });
        (gates, ports.unwrap())
    };
    let was = state(&topology);
    // All kinds of changes: attached, made, changed, guarded, handed over.
    let after = "[gate.a]\nendpoints = ['10.0.0.5:80']\nmode = 'guard'\n\
                 [gate.b]\nendpoints = ['10.0.0.5:82', '10.0.0.5:81']\n\
                 [gate.c]\nendpoints = ['*:90']\nbackends = [{ address = '10.0.0.5:8090' }]\n";
    let plan = planned(&topology, after);
    assert!(changes(&plan).len() > 5, "{plan}");
    configure(&topology, after);
    let line = "ls /sys/fs/bpf/gate/v*/*/links /sys/fs/bpf/gate/v*/*/names";
    let pins = shell(&topology, Side::Server, line);
    let output = topology.gate(["apply", "--config", PATH]).unwrap();
    assert_eq!(output.code(), 1, "{output}");
    assert!(output.stderr.contains("managed"), "{output}");
    assert_eq!(state(&topology), was);
    assert_eq!(shell(&topology, Side::Server, line), pins);
    // Put right, it goes on from where it was.
    let mend = || -> anyhow::Result<()> {
        fs::remove_file(&note)?;
        fs::remove_dir_all(folder.join("managed"))?;
        Ok(fs::rename(folder.join("aside"), folder.join("managed"))?)
    };
    topology.run(Side::Server, mend).unwrap();
    apply(&topology, before);
    assert_eq!(state(&topology), was);
    apply(&topology, after);
    assert!(gate_status(&topology, "c").handover.is_some());
}

#[test]
fn backends_get_the_connections_once_they_listen() {
    let topology = Topology::new().unwrap();
    let to = |weight: u32| {
        format!("{WEB}backends = [{{ address = '10.0.0.5:8090', weight = {weight} }}]\n")
    };
    let output = apply(&topology, &to(1));
    let waits = "? waits for a listener at 10.0.0.5:8090, a backend of web";
    assert!(output.stdout.contains(waits), "{output}");
    assert!(gate_status(&topology, "web").handover.is_none());
    let _listener = serve(&topology, server_v4(8090));
    assert_eq!(
        applied(&topology, &to(1)),
        ["+ hand web over to 10.0.0.5:8090 (1)"]
    );
    let attempt = connect_once(&topology, server_v4(PORT));
    assert_eq!(attempt.result, Ok(()));
    assert_eq!(
        applied(&topology, &to(2)),
        ["~ hand web over to 10.0.0.5:8090 (2)"]
    );
    assert_eq!(applied(&topology, &to(2)), [] as [&str; 0]);
    assert_eq!(
        applied(&topology, WEB),
        ["- hand web back to its own listener"]
    );
    assert!(gate_status(&topology, "web").handover.is_none());
    // By hand, it stays.
    gate(&topology, &["handover", "web", "--to", "10.0.0.5:8090"]);
    let output = apply(&topology, WEB);
    assert!(output.stdout.contains("handed over by hand"), "{output}");
    // A gate that goes gives it back first.
    let gone = applied(&topology, "");
    assert!(
        gone.contains(&"- hand web back to its own listener".to_owned()),
        "{gone:?}"
    );
    assert!(status(&topology).gates.is_empty());
    // What can't be is told before anything is done.
    let text =
        "[gate.six]\nendpoints = ['[fd00::5]:8080']\nbackends = [{ address = '10.0.0.5:8090' }]\n";
    assert_refused(&topology, text, 3, &["10.0.0.5:8090 takes no IPv6"]);
}

#[test]
fn what_a_restart_attached_stays_where_it_is_wanted() {
    let topology = Topology::new().unwrap();
    let running = start_gate(
        &topology,
        Side::Server,
        &["restart", ENDPOINT, "--", "sleep", "2"],
    );
    wait_until("the restart has attached", || {
        exists(&topology, ROOT) && attached(&topology, INTERFACE).is_any()
    });
    let text = "[gate.other]\nendpoints = ['10.0.0.5:1']\ninterfaces = ['eth0']\n";
    let made = applied(&topology, text);
    assert!(
        made.iter().any(|it| it.contains("keep eth0 attached")),
        "{made:?}"
    );
    let _listener = listen(&topology, server_v4(PORT));
    let output = running.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert!(attached(&topology, INTERFACE).is_any());
    assert!(find_gate(&topology, "other").is_some());
    assert!(!status(&topology).is_temporary);
}

#[test]
fn filters_are_attached_and_detached_as_links_are() {
    let topology = Topology::new().unwrap();
    let before = tc_state(&topology, INTERFACE);
    configure(&topology, WEB);
    gate_by_filters(&topology, &["apply", "--config", PATH]);
    assert_ne!(tc_state(&topology, INTERFACE), before);
    configure(&topology, "");
    gate_by_filters(&topology, &["apply", "--config", PATH]);
    assert_eq!(tc_state(&topology, INTERFACE), before);
    let output = try_by_filters(&topology, &["plan", "--config", PATH]);
    assert_eq!(output.stdout, "nothing to change\n");
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    let topology = up();
    for verb in ["plan", "apply"] {
        configure(&topology, "[gate.web]\nendpoints = ['x']\n");
        let before = snapshot(&topology);
        let output = topology.gate([verb, "--config", PATH]).unwrap();
        assert_eq!(output.code(), 2, "{output}");
        assert!(
            output.stderr.starts_with("/run/gate.toml:2:14: "),
            "{output}"
        );
        assert_eq!(snapshot(&topology), before);
    }
}

/// Gates of ten endpoints each, and one more endpoint for one of them.
fn many(count: usize, changed: Option<usize>) -> String {
    let mut text = String::new();
    for gate in 0..count {
        let mut endpoints: Vec<String> = (0..10)
            .map(|it| gate * 10 + it)
            .map(|it| format!("'10.9.{}.{}:{}'", it / 256, it % 256, 1000 + it % 700))
            .collect();
        if changed == Some(gate) {
            endpoints.push("'10.8.0.1:80'".to_owned());
        }
        let endpoints = endpoints.join(", ");
        text += &format!("[gate.g{gate}]\nendpoints = [{endpoints}]\ninterfaces = ['eth0']\n");
    }
    text
}

#[test]
fn ten_thousand_endpoints_are_applied_and_one_change_touches_one_gate() {
    let topology = Topology::new().unwrap();
    shell(&topology, Side::Server, "ip route add 10.0.0.0/8 dev eth0");
    let start = Instant::now();
    assert_eq!(applied(&topology, &many(1000, None)).len(), 1001);
    println!("applied in {:?}", start.elapsed());
    let names = "find /sys/fs/bpf -type d -regex '.*/[0-9]+-g[0-9]+' -printf '%P %i %C@\\n' | sort";
    let before = shell(&topology, Side::Server, names);
    assert_eq!(before.lines().count(), 2000);
    // A key that is written again becomes the first of its bucket, so the order tells.
    let entries = || {
        let read = || {
            let map = sys::open_pin(&Pins::here()?.map("ENDPOINTS"))?;
            Ok(sys::lookup_all::<EndpointKey, u32>(map.as_fd())?)
        };
        let all = topology.run(Side::Server, read).unwrap();
        let new = "10.8.0.1:80".parse::<Endpoint>().unwrap();
        let others = all
            .into_iter()
            .filter(|(key, _)| Endpoint::from(*key) != new);
        others.collect::<Vec<_>>()
    };
    // Once in an order that nobody else writes them in.
    let mix = || {
        let map = sys::open_pin(&Pins::here()?.map("ENDPOINTS"))?;
        let mut all = sys::lookup_all::<EndpointKey, u32>(map.as_fd())?;
        all.sort_by_key(|(key, _)| Reverse(Endpoint::from(*key)));
        Ok(sys::update_all(map.as_fd(), &all)?)
    };
    topology.run(Side::Server, mix).unwrap();
    let order = entries();
    assert_eq!(order.len(), 10_000);
    let start = Instant::now();
    let changed = applied(&topology, &many(1000, Some(500)));
    println!("changed in {:?}", start.elapsed());
    assert_eq!(changed, ["~ define g500: +10.8.0.1:80"]);
    assert_eq!(shell(&topology, Side::Server, names), before);
    assert!(entries() == order, "other gates' endpoints were written");
    let gates = status(&topology).gates;
    assert_eq!(gates.len(), 1000);
    let endpoints: usize = gates.iter().map(|it| it.gate.endpoints.len()).sum();
    assert_eq!(endpoints, 10_001);
    // All of them get other names, though there is no room for twice as many.
    let renamed = many(1000, None).replace("[gate.g", "[gate.h");
    assert_eq!(applied(&topology, &renamed).len(), 2000);
    assert_eq!(status(&topology).gates.len(), 1000);
    assert!(find_gate(&topology, "h999").is_some());
}

#[test]
fn a_full_table_is_told_before_anything_is_done() {
    let topology = up();
    apply(&topology, &many(1000, None));
    let text = many(1000, None) + "[gate.more]\nendpoints = [";
    let more: Vec<String> = (0..6_300)
        .map(|it| format!("'10.7.{}.{}:80'", it / 256, it % 256))
        .collect();
    let text = text + &more.join(",") + "]\ninterfaces = ['eth0']\n";
    let mine: Vec<String> = (0..100).map(|it| format!("10.6.0.{it}:80")).collect();
    let args: Vec<&str> = ["define", "mine"]
        .into_iter()
        .chain(mine.iter().map(String::as_str))
        .collect();
    gate(&topology, &args);
    assert_refused(&topology, &text, 1, &["the table of endpoints is full"]);
}

#[test]
fn a_guarded_gate_of_the_configuration_survives_a_restart() {
    let topology = Topology::new().unwrap();
    apply(&topology, GUARDED);
    let listener = listen(&topology, server_v4(PORT));
    let output = restart(&topology, &[], &["true"]);
    assert_ne!(
        output.code(),
        0,
        "the endpoint belongs to the gate: {output}"
    );
    close(&topology, listener);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_counted(&topology, "web", Counter::Held, 1);
    let _listener = listen(&topology, server_v4(PORT));
    // Its client's own retransmission finds it.
    assert!(client.finish_connected() > BEFORE_RETRANSMISSION);
    assert_eq!(applied(&topology, GUARDED), [] as [&str; 0]);
}

#[test]
fn one_that_was_killed_at_any_moment_is_gone_on_from() {
    let topology = Topology::new().unwrap();
    shell(&topology, Side::Server, "ip route add 10.0.0.0/8 dev eth0");
    let one = many(200, None);
    let other = many(200, Some(7)).replace("[gate.g1", "[gate.h1") + "mode = 'guard'\n";
    let mut cut_short = 0;
    for round in 0..24 {
        let text = if round % 2 == 0 { &one } else { &other };
        configure(&topology, text);
        let running = start_gate(&topology, Side::Server, &["apply", "--config", PATH]);
        sleep(MS * (round * 4));
        // It may be done by now.
        let _done = running.signal(Signal::SIGKILL);
        cut_short += usize::from(running.wait(LIMIT).unwrap().status.code().is_none());
        gate(&topology, &["apply", "--config", PATH]);
        let plan = planned(&topology, text);
        assert_eq!(changes(&plan), [] as [&str; 0], "round {round}");
        let gates = status(&topology).gates;
        assert_eq!(gates.len(), 200, "round {round}");
        let endpoints: usize = gates.iter().map(|it| it.gate.endpoints.len()).sum();
        assert_eq!(
            endpoints,
            2000 + usize::from(round % 2 == 1),
            "round {round}"
        );
        let guarded = gates.iter().filter(|it| it.guard.is_some()).count();
        assert_eq!(guarded, usize::from(round % 2 == 1), "round {round}");
    }
    assert!(cut_short > 8, "{cut_short} of 24");
}

#[test]
fn a_configuration_that_others_may_write_is_refused() {
    let topology = Topology::new().unwrap();
    configure(&topology, "");
    for (spoil, mend) in [
        ("chmod 0666", "chmod 0644"),
        ("chmod 0664", "chmod 0644"),
        ("chown 65534", "chown 0"),
    ] {
        shell(&topology, Side::Server, &format!("{spoil} {PATH}"));
        let output = topology.gate(["apply", "--config", PATH]).unwrap();
        assert_eq!(output.code(), 2, "{output}");
        let said = format!("{PATH}: others than root may write it");
        assert!(output.stderr.contains(&said), "{output}");
        shell(&topology, Side::Server, &format!("{mend} {PATH}"));
    }
    gate(&topology, &["check", "--config", PATH]);
}
