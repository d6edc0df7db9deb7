//! `gate doctor`: what it tells of a host, by what code it ends, and that it leaves nothing behind;
//! and what the other commands say on a kernel that lacks something. Needs root.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use aya::programs::{Program, ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::{XDP_FLAGS_SKB_MODE, bpf_cmd};
use common::{LIMIT, assert_refusal, gate, public_gate, refused, shell, snapshot, up};
use gate_common::abi::Direction;
use gate_tests::exe;
use gate_tests::topology::{INTERFACE, Output, Side, Topology};
use gate_userspace::attach::NO_TCX;
use gate_userspace::sys::probes;
use gate_userspace::{features, filters, interfaces, object, sys};
use serde_json::Value;

const DOCTOR: [&str; 1] = ["doctor"];
const JSON: [&str; 2] = ["doctor", "--json"];

/// Runs a command in the server namespace, which must change nothing.
#[track_caller]
fn run(topology: &Topology, command: &mut Command) -> Output {
    let before = traces(topology);
    let output = topology.output(Side::Server, command, LIMIT).unwrap();
    assert_eq!(traces(topology), before, "{output}");
    output
}

/// All that gate can change, and what the probes might: qdiscs, filters and interfaces.
fn traces(topology: &Topology) -> String {
    let line = "tc qdisc show; for i in lo eth0; do tc filter show dev $i ingress; done; ip -br link | cut -d' ' -f1";
    snapshot(topology) + &shell(topology, Side::Server, line)
}

fn command<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(exe::gate().unwrap());
    command.args(args);
    command
}

/// Runs `gate doctor`, in words.
#[track_caller]
fn words(topology: &Topology, code: i32) -> String {
    told(&run(topology, &mut command(&DOCTOR)), code)
}

/// What it told, in lines that fit.
#[track_caller]
fn told(output: &Output, code: i32) -> String {
    assert_eq!((output.code(), &*output.stderr), (code, ""), "{output}");
    let long = output
        .stdout
        .lines()
        .find(|line| line.chars().count() > 100);
    assert_eq!(long, None, "{output}");
    output.stdout.clone()
}

/// A text as one line.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The conclusion.
fn end(text: &str) -> String {
    flat(text.trim_end().rsplit("\n\n").next().unwrap_or_default())
}

/// Runs `gate doctor --json`.
#[track_caller]
fn fields(topology: &Topology) -> Value {
    parse(&run(topology, &mut command(&JSON)))
}

#[track_caller]
fn parse(output: &Output) -> Value {
    assert_eq!(output.stdout.lines().count(), 1, "{output}");
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(fields["version"], 2, "{output}");
    assert_eq!(fields["exit_code"], output.code(), "{output}");
    fields
}

/// The member of a list with this value.
#[track_caller]
fn find<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let members = list.as_array().expect("a list");
    let found = members.iter().find(|member| member[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list}"))
}

fn state(fields: &Value, feature: &str) -> String {
    let state = &find(&fields["features"], "id", feature)["state"];
    state.as_str().unwrap_or_default().to_owned()
}

// ---- What is there ----

#[test]
fn on_this_host_gate_works() {
    let topology = Topology::new().unwrap();
    let text = words(&topology, 0);
    assert!(end(&text).starts_with("gate works here"), "{text}");
    for word in [
        "yes: /sys/fs/bpf",
        "CAP_PERFMON",
        "the verifier takes all 4",
        "BPF ring buffers",
        "sk_lookup programs",
        "pidfd_getfd",
    ] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    let fields = fields(&topology);
    assert_eq!(
        (&fields["works"], &fields["exit_code"]),
        (&true.into(), &0.into())
    );
    assert_eq!(fields["programs_load"], true);
    assert_eq!(fields["obstacles"], Value::Array(Vec::new()));
    assert_eq!(fields["verdict"], end(&text));
    let required = fields["features"].as_array().unwrap().iter();
    let required: Vec<&Value> = required.filter(|it| it["required"] == true).collect();
    assert!(required.len() >= 10 && required.iter().all(|it| it["state"] == "present"));
}

#[test]
fn each_interface_is_told_with_the_hooks_that_up_takes() {
    let topology = Topology::new().unwrap();
    let found = fields(&topology);
    for interface in ["lo", INTERFACE] {
        let planned = find(&found["interfaces"], "name", interface);
        let up = gate(&topology, &["up", "--json", interface]);
        let upped: Value = serde_json::from_str(&up.stdout).unwrap();
        assert_eq!(
            planned["hooks"], upped["interfaces"][0]["hooks"],
            "{planned}"
        );
        let now = fields(&topology);
        let attached = &find(&now["interfaces"], "name", interface)["attached"];
        assert_eq!(*attached, planned["hooks"]);
        gate(&topology, &["down"]);
    }
    let veth = find(&found["interfaces"], "name", INTERFACE);
    assert_eq!((&veth["kind"], &veth["up"]), (&"veth".into(), &true.into()));
    assert_eq!(veth["mtu"], 1500);
    assert_eq!(veth["others"], Value::Array(Vec::new()));
}

#[test]
fn gate_itself_is_not_another() {
    let topology = up();
    for hook in ["tc", "xdp-generic"] {
        gate(&topology, &["down"]);
        gate(&topology, &["up", "--hook", hook, INTERFACE]);
        let text = words(&topology, 0);
        assert!(text.contains("attached, "), "{text}");
        assert!(!text.contains("another's"), "{text}");
    }
}

/// Gate's own XDP program, loaded and attached by somebody else.
fn foreign_xdp(topology: &Topology) -> (Ebpf, OwnedFd) {
    let attached = topology.run(Side::Server, || {
        let mut ebpf = EbpfLoader::new().load(object::OBJECT)?;
        let program = ebpf.program_mut("gate_xdp").map(<&mut Xdp>::try_from);
        let program = program.expect("it is in the object")?;
        program.load()?;
        let index = interfaces::named(&interfaces::list()?, INTERFACE)?.index;
        let fd: &ProgramFd = program.fd()?;
        let link = sys::attach_xdp(fd.as_fd(), index, XDP_FLAGS_SKB_MODE)?;
        Ok((ebpf, link))
    });
    attached.unwrap()
}

#[test]
fn a_foreign_xdp_program_is_named() {
    let topology = Topology::new().unwrap();
    let (ebpf, _link) = foreign_xdp(&topology);
    let id = ebpf.program("gate_xdp").and_then(|program| match program {
        Program::Xdp(xdp) => xdp.info().ok(),
        _ => None,
    });
    let id = id.expect("its info").id();
    let text = words(&topology, 0);
    let line = format!("another's program is at xdp-generic: gate_xdp (id {id})");
    assert!(text.contains(&line), "no {line} in {text}");
    let found = fields(&topology);
    let others = &find(&found["interfaces"], "name", INTERFACE)["others"];
    assert_eq!(others[0]["hook"], "xdp-generic");
    assert_eq!(
        (&others[0]["id"], &others[0]["by"]),
        (&id.into(), &"xdp".into())
    );
    assert_eq!(others.as_array().map(Vec::len), Some(1));
}

#[test]
fn foreign_tc_programs_are_named() {
    let topology = Topology::new().unwrap();
    let attached = topology.run(Side::Server, || {
        let index = interfaces::named(&interfaces::list()?, INTERFACE)?.index;
        let program = probes::load_classifier()?;
        filters::make_qdisc(index)?;
        filters::add(index, Direction::Egress, program.as_fd(), "theirs")?;
        Ok(())
    });
    attached.unwrap();
    let text = words(&topology, 0);
    assert!(
        text.contains("is at tc-egress (clsact): theirs (id "),
        "{text}"
    );
}

#[test]
fn help_tells_of_it() {
    let topology = Topology::new().unwrap();
    let help = gate(&topology, &["--help"]).stdout;
    assert!(help.contains("  doctor "), "{help}");
    let text = gate(&topology, &["doctor", "--help"]).stdout;
    assert!(text.contains("Usage: gate doctor"), "{text}");
}

// ---- What is missing: rights, bpffs ----

#[test]
fn without_rights_it_says_which_are_missing() {
    // Also where gate is up, whose programs can't be told from others' then.
    for topology in [Topology::new().unwrap(), up()] {
        let path = public_gate(&topology);
        let nobody = |args: &[&str]| {
            let mut command = Command::new(&path);
            run(&topology, command.args(args).uid(65534).gid(65534))
        };
        let text = told(&nobody(&DOCTOR), 4);
        let conclusion = end(&text);
        for word in [
            "can't be told",
            "user root",
            "CAP_BPF",
            "CAP_NET_ADMIN",
            "run it as root",
        ] {
            assert!(conclusion.contains(word), "no {word} in {text}");
        }
        assert!(text.contains("this process may not try it"), "{text}");
        assert!(text.contains(INTERFACE), "{text}");
        assert!(!text.contains("another's program"), "{text}");
        let fields = parse(&nobody(&JSON));
        assert_eq!(fields["works"], Value::Null);
        assert_eq!(fields["missing_rights"][0], "user root");
        let one = find(&fields["interfaces"], "name", INTERFACE);
        assert_eq!(one["attached"], Value::Null);
    }
}

/// `gate` without some capabilities, as `setpriv --bounding-set` names them.
fn without_capabilities(dropped: &str, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--bounding-set={dropped}"))
        .arg("--inh-caps=-all")
        .arg(exe::gate().unwrap())
        .args(args);
    command
}

#[test]
fn a_root_with_the_capabilities_that_are_needed_and_no_others_is_enough() {
    let topology = Topology::new().unwrap();
    let needed = "-all,+bpf,+perfmon,+net_admin";
    let text = told(
        &run(&topology, &mut without_capabilities(needed, &DOCTOR)),
        0,
    );
    // But for raw sockets.
    assert!(
        flat(&text).contains("while loopback is attached, is refused"),
        "{text}"
    );
    assert_eq!(end(&text), "gate works here, with 1 limit");
    for hook in ["tc", "xdp-generic"] {
        let args = ["up", "--hook", hook, INTERFACE];
        let mut up = without_capabilities(needed, &args);
        let output = topology.output(Side::Server, &mut up, LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        gate(&topology, &["down"]);
    }
}

#[test]
fn without_one_of_the_capabilities_that_are_needed_up_names_it() {
    let topology = Topology::new().unwrap();
    for (needed, name) in [
        ("+perfmon,+net_admin", "CAP_BPF"),
        ("+bpf,+net_admin", "CAP_PERFMON"),
        ("+bpf,+perfmon", "CAP_NET_ADMIN"),
    ] {
        let dropped = format!("-all,{needed}");
        let output = run(
            &topology,
            &mut without_capabilities(&dropped, &["up", INTERFACE]),
        );
        assert_refusal(&output, 4, &["missing rights", name]);
        let doctor = run(&topology, &mut without_capabilities(&dropped, &DOCTOR));
        let text = told(&doctor, 4);
        assert!(end(&text).contains(name), "{text}");
    }
}

#[test]
fn without_bpffs_it_says_how_to_mount_it() {
    let topology = Topology::new().unwrap();
    let gate = |line: &str| {
        let mut command = Command::new("unshare");
        let line = format!("{line} && exec \"$0\" doctor");
        command
            .args(["-m", "sh", "-c", &line])
            .arg(exe::gate().unwrap());
        run(&topology, &mut command)
    };
    let text = told(&gate("umount /sys/fs/bpf"), 1);
    let conclusion = end(&text);
    for word in ["does not work here", "mount -t bpf bpf /sys/fs/bpf"] {
        assert!(conclusion.contains(word), "no {word} in {text}");
    }
    let text = told(&gate("mkdir /run/b && mount --move /sys/fs/bpf /run/b"), 1);
    assert!(
        flat(&text).contains("the one at /run/b is not used"),
        "{text}"
    );
}

#[test]
fn pins_of_another_version_are_in_the_way() {
    let topology = Topology::new().unwrap();
    let line = "umask 077; mkdir -p /sys/fs/bpf/gate/v0/$(stat -Lc %i /proc/self/ns/net)";
    shell(&topology, Side::Server, line);
    let text = words(&topology, 1);
    assert!(end(&text).contains("another version of gate"), "{text}");
}

// ---- Kernels that lack something, by a filter that answers as they do ----

/// Lets a command of `bpf(2)` fail as if the kernel did not know it.
fn without_command(command: &mut Command, missing: bpf_cmd) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Offsets in seccomp_data: the call's number, its first argument.
    const NUMBER: u32 = 0;
    const FIRST: u32 = 16;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD, NUMBER, 0, 0),
        step(EQUAL, libc::SYS_bpf as u32, 0, 3),
        step(LOAD, FIRST, 0, 0),
        step(EQUAL, missing as u32, 0, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: steps.len() as u16,
            filter: steps.as_mut_ptr(),
        };
        // SAFETY: prctl(2) is async-signal-safe; the program and its steps live through the call.
        let result =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
        match result {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and touches only its own memory.
    unsafe { command.pre_exec(install) };
}

#[test]
fn a_kernel_without_something_required_is_refused_by_its_name() {
    let topology = Topology::new().unwrap();
    let release = format!("({})", features::release());
    for (missing, words) in [
        (bpf_cmd::BPF_LINK_CREATE, ["XDP links", "Linux 5.9"]),
        (
            bpf_cmd::BPF_LINK_DETACH,
            ["detaching of links", "Linux 5.9"],
        ),
        (bpf_cmd::BPF_LINK_UPDATE, ["link's program", "Linux 5.7"]),
        (bpf_cmd::BPF_MAP_LOOKUP_BATCH, ["batch calls", "Linux 5.6"]),
        (bpf_cmd::BPF_MAP_FREEZE, ["global data", "Linux 5.2"]),
        (bpf_cmd::BPF_PROG_TEST_RUN, ["test runs", "Linux 4.12"]),
    ] {
        let on_it = |args: &[&str]| {
            let mut command = command(args);
            without_command(&mut command, missing);
            run(&topology, &mut command)
        };
        let words = [words[0], words[1], &release, "upgrade it"];
        for attaches in [&["up", INTERFACE][..], &["restart", "*:80", "--", "true"]] {
            assert_refusal(&on_it(attaches), 1, &words);
        }
        let text = told(&on_it(&DOCTOR), 1);
        for word in words {
            assert!(end(&text).contains(word), "no {word} in {text}");
        }
        assert_eq!(parse(&on_it(&JSON))["works"], false);
    }
}

#[test]
fn a_kernel_without_what_an_alias_needs_is_refused_by_its_name() {
    let topology = up();
    gate(&topology, &["define", "web", "10.0.0.5:80"]);
    let alias = ["alias", "web", "10.0.0.5:81"];
    let mut no_lookup = command(&alias);
    without_command(&mut no_lookup, bpf_cmd::BPF_PROG_LOAD);
    let words = ["sk_lookup programs", "Linux 5.9", "upgrade it"];
    assert_refusal(&run(&topology, &mut no_lookup), 1, &words);
    let mut no_lookup = command(&JSON);
    without_command(&mut no_lookup, bpf_cmd::BPF_PROG_LOAD);
    let told = parse(&run(&topology, &mut no_lookup));
    assert_eq!(state(&told, "sk-lookup"), "absent");
    assert_eq!(state(&told, "pidfd-getfd"), "present");
}

#[test]
fn a_kernel_without_tcx_works_by_filters() {
    let topology = Topology::new().unwrap();
    let mut without = command(&JSON);
    without_command(&mut without, bpf_cmd::BPF_PROG_QUERY);
    let by_filter = parse(&run(&topology, &mut without));
    let by_variable = parse(&run(&topology, command(&JSON).env(NO_TCX, "1")));
    for fields in [by_filter, by_variable] {
        assert_eq!(fields["works"], true, "{fields}");
        assert_eq!(state(&fields, "tcx"), "absent");
        assert_eq!(state(&fields, "clsact"), "present");
        let one = find(&fields["interfaces"], "name", INTERFACE);
        assert_eq!(one["hooks"][0]["by"], "clsact", "{one}");
    }
}

#[test]
fn what_a_container_forbids_is_not_taken_for_missing() {
    let topology = Topology::new().unwrap();
    // In a user namespace every capability is there, and none counts.
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user"])
        .arg(exe::gate().unwrap())
        .args(DOCTOR);
    let text = told(&run(&topology, &mut command), 4);
    assert!(end(&text).contains("user namespace"), "{text}");
}

#[test]
fn it_takes_no_arguments() {
    let topology = Topology::new().unwrap();
    refused(&topology, &["doctor", INTERFACE], 2, &[INTERFACE]);
}
