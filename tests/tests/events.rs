//! `gate events`: what happens to the gates is told, whoever did it. Needs root.

mod common;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use common::{
    CONFIG, Clients, ENDPOINT, LIMIT, MS, PORT, ROOT, assert_refusal, gate, held_client, listen,
    restart_daemon, shell, start_daemon, start_gate, up, wait_until, wait_until_held, write,
};
use gate_tests::backend::Options;
use gate_tests::exe;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Process, Side, Topology, server_v4};

use gate_userspace::events::{self, Event, Moment, Observer, Source, What};

use gate_userspace::pins::Pins;
use gate_userspace::tables::Tables;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// Follows the events of a topology's server, in JSON, from now on.
struct Following(Process);

impl Following {
    #[track_caller]
    fn start(topology: &Topology) -> Self {
        let process = start_gate(topology, Side::Server, &["events", "--json"]);
        wait_until("it follows", || {
            assert!(!process.has_ended().unwrap(), "{:?}", process.stderr());
            process.stderr().unwrap().contains("following")
        });
        Self(process)
    }

    #[track_caller]
    fn all(&self) -> Vec<Event> {
        let text = self.0.stdout().unwrap();
        let event = |line: &str| {
            let value: Value = serde_json::from_str(line).expect(line);
            assert_eq!(value["version"], 2, "{line}");
            events::from_json(&value).expect(line)
        };
        text.lines().map(event).collect()
    }

    /// Waits until that many have been told, and returns what they say, with their gates.
    #[track_caller]
    fn wait(&self, count: usize) -> Vec<(Option<String>, What)> {
        wait_until("the events are told", || self.all().len() >= count);
        let all = self.all().into_iter();
        all.map(|event| (event.gate, event.what)).collect()
    }
}

fn of(gate: &str, what: What) -> (Option<String>, What) {
    (Some(gate.to_owned()), what)
}

#[test]
fn closing_opening_and_leases_are_told_whoever_did_it() {
    let topology = up();
    gate(&topology, &["define", "web", ENDPOINT]);
    let following = Following::start(&topology);
    let begun = SystemTime::now();
    gate(&topology, &["hold", "web", "--for", "20s"]);
    following.wait(1);
    gate(&topology, &["reject", "web", "--for", "20s"]);
    following.wait(2);
    gate(&topology, &["open", "web"]);
    following.wait(3);
    gate(&topology, &["drop", "10.0.0.5:81", "--for", "300ms"]);
    let told = following.wait(5);
    let names: Vec<&str> = told.iter().map(|(_, what)| name(what)).collect();
    assert_eq!(names, ["hold", "reject", "opened", "drop", "lease over"]);
    let whose: Vec<&str> = told
        .iter()
        .filter_map(|(gate, _)| gate.as_deref())
        .collect();
    assert_eq!(whose, ["web", "web", "web", "10.0.0.5:81", "10.0.0.5:81"]);
    let all = following.all();
    assert!(all.is_sorted_by_key(|event| event.at), "{all:?}");
    assert!(
        all.iter()
            .all(|event| event.at > begun && event.at < SystemTime::now())
    );
    let What::Closed { lease, .. } = &told[0].1 else {
        panic!("{told:?}");
    };
    assert!(
        *lease > Duration::from_secs(18) && *lease < Duration::from_secs(21),
        "{lease:?}"
    );
}

fn name(what: &What) -> &'static str {
    match what {
        What::Closed { mode, .. } => mode.name(),
        What::Opened => "opened",
        What::Expired => "lease over",
        other => panic!("{other:?}"),
    }
}

#[test]
fn definitions_guards_and_missing_listeners_are_told() {
    let topology = up();
    let following = Following::start(&topology);
    gate(&topology, &["define", "web", ENDPOINT]);
    following.wait(1);
    gate(&topology, &["guard", "web", "--for", "30s"]);
    following.wait(2);
    let watcher = start_gate(
        &topology,
        Side::Server,
        &["guard", "web", "--for", "30s", "--watch"],
    );
    wait_until("it watches", || {
        watcher.stdout().unwrap().contains("guarded")
    });
    let clients = Clients::start(&topology, server_v4(PORT), 3, None);
    wait_until_held(&topology, "web", 3);
    following.wait(3);
    let _listener = listen(&topology, server_v4(PORT));
    clients.finish_connected();
    following.wait(4);
    gate(&topology, &["guard", "web", "--off"]);
    following.wait(5);
    gate(&topology, &["forget", "web"]);
    let told = following.wait(6);
    let endpoint = ENDPOINT.parse().unwrap();
    let lease = Duration::from_secs(30);
    assert_eq!(told[0], of("web", What::Defined));
    assert_eq!(told[1], of("web", What::Guarded { lease }));
    assert_eq!(told[2], of("web", What::ListenerMissing { endpoint }));
    let (
        _,
        What::ListenerBack {
            after, released, ..
        },
    ) = &told[3]
    else {
        panic!("{told:?}");
    };
    assert_eq!(*released, 3);
    assert!(*after > MS * 50 && *after < LIMIT, "{after:?}");
    assert_eq!(told[4], of("web", What::Unguarded));
    assert_eq!(told[5], of("web", What::Forgotten));
    assert_eq!(told.len(), 6, "{told:?}");
}

#[test]
fn a_guard_without_a_watcher_is_told_of_too() {
    let topology = up();
    gate(&topology, &["guard", ENDPOINT, "--for", "30s"]);
    let following = Following::start(&topology);
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    following.wait(1);
    let _listener = listen(&topology, server_v4(PORT));
    client.finish_connected();
    let told = following.wait(2);
    // Its own retransmission passed, and nothing was injected.
    let (_, What::ListenerBack { released: 0, .. }) = &told[1] else {
        panic!("{told:?}");
    };
}

#[test]
fn a_handover_and_its_way_back_are_told() {
    let topology = up();
    gate(&topology, &["define", "web", ENDPOINT]);
    let backend = |port| Service::start(&topology, Options::new(server_v4(port))).unwrap();
    let _both = (backend(PORT), backend(8082));
    let following = Following::start(&topology);
    gate(&topology, &["handover", "web", "--to", "10.0.0.5:8082"]);
    following.wait(1);
    gate(&topology, &["handover", "web", "--back"]);
    let told = following.wait(2);
    let to = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let handed = |texts: &[&str]| of("web", What::HandedOver { to: to(texts) });
    assert_eq!(told, [handed(&["10.0.0.5:8082"]), handed(&[])]);
}

#[test]
fn it_goes_on_through_down_and_up() {
    let topology = up();
    gate(&topology, &["define", "web", ENDPOINT]);
    let following = Following::start(&topology);
    gate(&topology, &["hold", "web"]);
    following.wait(1);
    gate(&topology, &["down"]);
    let told = following.wait(4);
    let interface = || INTERFACE.to_owned();
    let (detached, attached) = (
        (
            None,
            What::Detached {
                interface: interface(),
            },
        ),
        (
            None,
            What::Attached {
                interface: interface(),
            },
        ),
    );
    assert_eq!(
        told[1..],
        [
            of("web", What::Opened),
            detached.clone(),
            of("web", What::Forgotten)
        ]
    );
    gate(&topology, &["up", INTERFACE]);
    assert_eq!(following.wait(5)[4], attached);
    // An interface that is gone is one that the data path sees no more.
    shell(
        &topology,
        Side::Server,
        &format!("ip link delete {INTERFACE}"),
    );
    assert_eq!(following.wait(6)[5], detached);
    // It holds nothing back: all can be taken away while it follows.
    gate(&topology, &["down"]);
    assert!(
        !topology
            .run(Side::Server, || Ok(std::path::Path::new(ROOT).exists()))
            .unwrap()
    );
    assert!(!following.0.has_ended().unwrap());
}

#[test]
fn it_begins_before_gate_is_up() {
    let topology = Topology::new().unwrap();
    let following = Following::start(&topology);
    gate(&topology, &["up", INTERFACE]);
    let interface = INTERFACE.to_owned();
    assert_eq!(following.wait(1), [(None, What::Attached { interface })]);
}

#[test]
fn a_signal_ends_it_well() {
    let topology = up();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let following = Following::start(&topology).0;
        following.signal(signal).unwrap();
        let output = following.wait(LIMIT).unwrap();
        assert_eq!((output.code(), output.stdout.as_str()), (0, ""), "{output}");
        // Where it has its events from is all that it says there.
        assert_eq!(output.stderr.lines().count(), 1, "{output}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_it_well() {
    let topology = up();
    let gate = exe::gate().unwrap();
    // The reader ends at once, and nothing happens at all.
    let line = format!("{{ {} events; echo code $? >&2; }} | true", gate.display());
    let mut command = Command::new("sh");
    let output = topology
        .output(Side::Server, command.args(["-c", &line]), LIMIT)
        .unwrap();
    assert!(output.stderr.contains("code 0"), "{output}");
}

#[test]
fn people_read_lines() {
    let topology = up();
    let process = start_gate(&topology, Side::Server, &["events"]);
    wait_until("it follows", || {
        process.stderr().unwrap().contains("following")
    });
    gate(&topology, &["hold", ENDPOINT, "--for", "20s"]);
    wait_until("it is told", || process.stdout().unwrap().ends_with('\n'));
    let line = process.stdout().unwrap();
    assert!(
        line.contains(&format!("{ENDPOINT}: closed (hold), for ")),
        "{line}"
    );
    assert!(line.starts_with("20") && line.contains("Z  "), "{line}");
}

#[test]
fn without_rights_it_says_so() {
    let topology = up();
    let gate = exe::gate().unwrap();
    let line = format!(
        "exec setpriv --reuid=65534 --clear-groups {} events",
        gate.display()
    );
    let mut command = Command::new("sh");
    let output = topology
        .output(Side::Server, command.args(["-c", &line]), LIMIT)
        .unwrap();
    assert_refusal(&output, 4, &["missing rights", "run it as root"]);
}

/// A gate that is checked ten times a second.
fn watched() -> String {
    format!(
        "[gate.web]\nendpoints = [\"{ENDPOINT}\"]\ninterfaces = [\"{INTERFACE}\"]\n\
         [[gate.web.check]]\ntcp = \"{ENDPOINT}\"\ninterval = \"100ms\"\nrise = 1\nfall = 2\n\
         [gate.web.on_down]\ndo = \"hold\"\n"
    )
}

#[test]
fn the_daemons_events_are_followed_and_its_death_is_survived() {
    let topology = Topology::new().unwrap();
    let daemon = start_daemon(&topology, &watched());
    let following = Following::start(&topology);
    let said = || following.0.stderr().unwrap();
    assert!(
        said().ends_with("following the events of the daemon\n"),
        "{}",
        said()
    );
    let backend = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    // Before it began, the daemon may have seen that nothing listens, and held it.
    let last = |is: fn(&What) -> bool| following.all().iter().rposition(|it| is(&it.what));
    let up = || last(|what| *what == What::Up);
    wait_until("it is told to be up", || up().is_some());
    backend.process().signal(Signal::SIGKILL).unwrap();
    wait_until("it is told to be down", || {
        last(|what| matches!(what, What::Down { .. })) > up()
    });
    wait_until("it is told to be closed", || {
        last(|what| matches!(what, What::Closed { .. })) > up()
    });
    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait(LIMIT).unwrap();
    wait_until("it says so", || said().contains("no daemon any more"));
    gate(&topology, &["open", "web"]);
    wait_until("it is told all the same", || {
        let closed = last(|what| matches!(what, What::Closed { .. }));
        last(|what| *what == What::Opened) > closed
    });
    let _daemon = restart_daemon(&topology);
    wait_until("the daemon is followed again", || {
        said().matches("following the events of the daemon").count() == 2
    });
    assert!(!following.0.has_ended().unwrap());
}

/// CPU time that this thread has taken.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

#[test]
fn looking_at_a_thousand_gates_takes_no_call_for_each() {
    const GATES: u32 = 1_000;
    const LOOKS: u32 = 50;
    let topology = up();
    let gates = (1..=GATES).map(|n| format!("[gate.gate-{n}]\nendpoints = [\"10.0.0.5:{n}\"]\n"));
    write(&topology, CONFIG, &gates.collect::<String>());
    gate(&topology, &["apply", "--config", CONFIG]);
    let (quiet, each) = topology
        .run(Side::Server, || {
            let pins = Pins::here()?;
            let tables = Tables::open(&pins)?;
            let mut source = Source::new(&pins);
            let mut observer = Observer::new();
            observer.step(source.look()?, Moment::now());
            // Paced as `gate events` is, so that what is read now and then counts.
            let (start, mut quiet) = (Instant::now(), Duration::ZERO);
            for n in 1..=LOOKS {
                std::thread::sleep((start + events::INTERVAL * n) - Instant::now());
                let before = cpu();
                let events = observer.step(source.look()?, Moment::now());
                quiet += cpu() - before;
                assert!(events.is_empty(), "{events:?}");
            }
            // What one call for each gate takes.
            let before = cpu();
            for n in 1..=GATES {
                tables.state(gate_common::flow::GateId(n))?;
            }
            Ok((quiet, cpu() - before))
        })
        .unwrap();
    let look = quiet / LOOKS;
    let share = look.as_secs_f64() / events::INTERVAL.as_secs_f64();
    println!(
        "a look {look:?}, {:.3} % of a core; a call for each gate {each:?}",
        share * 100.0
    );
    assert!(
        look < each,
        "a look {look:?}, a call for each gate {each:?}"
    );
}
