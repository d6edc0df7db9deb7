//! `gate handover`.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use gate_userspace::drain::{self, driver};
use gate_userspace::error::exit;
use gate_userspace::gates::Target;
use gate_userspace::handover::{self, Finished, Handed, HookChoice, Plan, Portion};
use gate_userspace::pins::Pins;
use gate_userspace::{clock, report};

use super::{Answer, lease, on_runtime, print};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
On the backend's host (the gate's endpoint is one of its addresses) the kernel gives new \
connections to the sockets that listen at ADDR; the backend sees them with the address that their \
client asked for. On the proxy's host (it is not) connect(2) goes to ADDR instead, and getpeername(2) \
still tells the endpoint. Connections that are established, or half-open, stay where they are, and \
no packet costs more. If a backend's socket goes away, new connections go to the gate's own listener \
again.

Exit codes: 0 done; 3 with --then, connections were left when the time was up, and the command did \
not run. A command that fails passes its own exit code on.")]
pub struct Handover {
    /// What to hand over: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080.
    #[arg(value_name = "GATE")]
    target: Target,
    /// Who gets new connections: 127.0.0.1:8082, *:8082 for a listener on any address, or
    /// 127.0.0.1:8082,[::1]:8082 for one at both. With several, the part that each gets, as in
    /// --to 10.0.0.5:80=9 --to 10.0.0.6:80=1.
    #[arg(long, value_name = "ADDR[=WEIGHT]", required_unless_present_any = ["pid", "back"])]
    to: Vec<Portion>,
    /// The process whose listening socket is meant.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Give new connections to the gate's own listener again.
    #[arg(long, conflicts_with_all = ["to", "pid", "hook", "cgroup"])]
    back: bool,
    /// Where new connections are seen.
    #[arg(long, value_enum, value_name = "HOOK", default_value_t = Hook::Auto)]
    hook: Hook,
    /// The control group (cgroup v2) whose processes are meant, as a folder [default: all].
    #[arg(long, value_name = "FOLDER")]
    cgroup: Option<PathBuf>,
    /// A shell command to run once the backends that get no new connections any more are empty.
    #[arg(long, value_name = "COMMAND")]
    then: Option<String>,
    /// How long to wait for that.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = lease, requires = "then")]
    timeout: Duration,
}

/// As [`HookChoice`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Hook {
    /// sk-lookup where the gate's endpoints are this host's, else cgroup-connect.
    Auto,
    /// Where connections arrive, on the backend's host (Linux 5.9).
    SkLookup,
    /// Where connections are made, on the proxy's host (cgroup v2).
    CgroupConnect,
}

impl From<Hook> for HookChoice {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Auto => Self::Auto,
            Hook::SkLookup => Self::SkLookup,
            Hook::CgroupConnect => Self::CgroupConnect,
        }
    }
}

/// Runs it.
pub fn run(pins: &Pins, args: &Handover, json: bool) -> anyhow::Result<Answer> {
    let handed = match args.back {
        true => handover::back(pins, &args.target)?,
        false => handover::hand_over(pins, &args.target, &plan(args))?,
    };
    let text = report::handed(&handed);
    let Some(command) = &args.then else {
        return Ok(Answer::done(text, report::handed_json(&handed, None)));
    };
    if !json {
        // What is done is told before it waits.
        print(&text)?;
    }
    let finished = finish(&handed, command, args.timeout, json)?;
    Ok(Answer {
        text: report::finished(&handed, &finished),
        fields: report::handed_json(&handed, Some(&finished)),
        code: finished.exit_code(),
        complaint: report::finish_complaint(&handed, &finished, args.timeout),
    })
}

/// Waits until the backends that get no new connections any more are empty, then runs the command.
fn finish(
    handed: &Handed,
    command: &str,
    timeout: Duration,
    json: bool,
) -> anyhow::Result<Finished> {
    if handed.left.is_empty() {
        return Ok(Finished::NobodyLeft);
    }
    let giving = || drain::of_backends(&handed.left, &[], clock::now()).map(|it| it.giving);
    let gates = giving()?;
    if !gates.is_empty() {
        return Ok(Finished::StillGiven(gates));
    }
    let mut progress = report::Stderr::new(json);
    let drained = on_runtime(driver::empty(&handed.left, timeout, &mut progress));
    progress.clear();
    let drained = drained??;
    if drained.exit_code() != exit::DONE {
        return Ok(Finished::Remaining(drained));
    }
    // Another command may have given it some again meanwhile.
    let gates = giving()?;
    if !gates.is_empty() {
        return Ok(Finished::StillGiven(gates));
    }
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", command]);
    if json {
        // The answer is all that goes to stdout.
        shell.stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
    }
    let status = shell.status().context("run sh -c")?;
    Ok(Finished::Ran(drained, status))
}

fn plan(args: &Handover) -> Plan {
    Plan {
        to: args.to.clone(),
        pid: args.pid,
        hook: args.hook.into(),
        cgroup: args.cgroup.clone(),
    }
}
