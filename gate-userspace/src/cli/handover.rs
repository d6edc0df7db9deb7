//! `gate handover`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use gate_userspace::gates::Target;
use gate_userspace::handover::{self, HookChoice, Plan, Portion};
use gate_userspace::pins::Pins;
use gate_userspace::report;

use super::{Answer, lease};

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
pub fn run(pins: &Pins, args: &Handover, _json: bool) -> anyhow::Result<Answer> {
    let handed = match args.back {
        true => handover::back(pins, &args.target)?,
        false => handover::hand_over(pins, &args.target, &plan(args))?,
    };
    Ok(Answer::done(
        report::handed(&handed),
        report::handed_json(&handed),
    ))
}

fn plan(args: &Handover) -> Plan {
    Plan {
        to: args.to.clone(),
        pid: args.pid,
        hook: args.hook.into(),
        cgroup: args.cgroup.clone(),
    }
}
