//! The configuration on the command line: what `gate check` and `gate schema` say, to whom, and that
//! they touch nothing. Needs root.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{LIMIT, gate, public_gate, shell, snapshot, up};
use gate_tests::topology::{Output, SCRATCH, Side, Topology};
use serde_json::Value;

/// A right configuration.
const RIGHT: &str = "[gate.web]\nendpoints = ['10.0.0.5:80', '[fd00::5]:80']\nmode = 'guard'\n";

/// Writes a file where every process of the topology sees it.
fn write(topology: &Topology, name: &str, text: &str) -> String {
    let path = format!("{SCRATCH}/{name}");
    topology
        .run(Side::Server, || {
            fs::write(&path, text)?;
            Ok(fs::set_permissions(
                &path,
                fs::Permissions::from_mode(0o644),
            )?)
        })
        .unwrap();
    path
}

fn nobody(topology: &Topology, args: &[&str]) -> Output {
    let mut command = Command::new(public_gate(topology));
    let command = command.args(args).uid(65534).gid(65534);
    topology.output(Side::Server, command, LIMIT).unwrap()
}

fn parse(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

#[test]
fn a_configuration_is_checked_without_rights_and_without_bpffs() {
    let topology = up();
    let path = write(&topology, "gate.toml", RIGHT);
    let before = snapshot(&topology);
    let checked = nobody(&topology, &["check", "--config", &path]);
    assert_eq!(snapshot(&topology), before);
    assert_eq!(checked.code(), 0, "{checked}");
    shell(&topology, Side::Server, "umount -l /sys/fs/bpf");
    let output = nobody(&topology, &["check", "--config", &path]);
    assert_eq!(output.code(), 0, "{output}");
    let line = "the configuration is right: 1 gate, 2 endpoints, 0 health checks\n";
    assert_eq!(output.stdout, line);
    let fields = parse(&nobody(&topology, &["check", "--json", "--config", &path]));
    assert_eq!(fields["endpoints"], 2, "{fields}");
}

#[test]
fn a_wrong_configuration_is_told_line_by_line() {
    let topology = Topology::new().unwrap();
    let path = write(&topology, "gate.toml", "[gate.web]\nmod = 'guard'\n");
    let output = nobody(&topology, &["check", "--config", &path]);
    assert_eq!(output.code(), 2, "{output}");
    let expected = format!(
        "{path}:1:7: gate.web has no `endpoints`: add it\n\
         {path}:2:1: unknown key `mod` in gate.web: did you mean `mode`?\n"
    );
    assert_eq!(output.stderr, expected);
    assert_eq!(output.stdout, "");
    let fields = parse(&nobody(&topology, &["check", "--json", "--config", &path]));
    assert_eq!(fields["exit_code"], 2);
    assert_eq!(fields["problems"][1]["line"], 2, "{fields}");
    assert_eq!(fields["problems"][1]["column"], 1, "{fields}");
}

#[test]
fn what_a_user_may_not_read_is_told_so() {
    let topology = Topology::new().unwrap();
    let path = write(&topology, "gate.toml", RIGHT);
    shell(&topology, Side::Server, &format!("chmod 600 {path}"));
    let output = nobody(&topology, &["check", "--config", &path]);
    assert_eq!(output.code(), 2, "{output}");
    assert!(
        output.stderr.contains("may not be read by this user"),
        "{output}"
    );
    // The default place is empty here.
    let output = nobody(&topology, &["check", "--config", "/run/none/gate.toml"]);
    assert_eq!(output.code(), 2, "{output}");
    assert!(output.stderr.contains("there is no such file"), "{output}");
}

#[test]
fn the_schema_is_printed_for_machines_and_for_people() {
    let topology = Topology::new().unwrap();
    let schema: Value = serde_json::from_str(&gate(&topology, &["schema"]).stdout).unwrap();
    let gates = &schema["properties"]["gate"]["additionalProperties"];
    assert_eq!(gates["required"][0], "endpoints", "{gates}");
    let text = gate(&topology, &["schema", "--markdown"]).stdout;
    assert!(text.starts_with("# gate.toml\n"), "{text}");
}
