//! What is asked of the programs beside gate, and of the network that benchmarks find.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::haproxy::Release;
use crate::topology::{Offload, Side, Topology};
use crate::{iperf3, iptables, nft, xdp_filter};

/// How long a program may take to tell its version.
const LIMIT: Duration = Duration::from_secs(10);

/// What something was asked, and what it answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked.
    pub name: String,
    /// The answer; none where there was nobody to ask.
    pub value: Option<String>,
}

impl Answer {
    /// A program's version in its own words, which have its name, without the address of its site.
    pub(super) fn version(&self) -> String {
        match &self.value {
            Some(value) => value.split(" - http").next().unwrap_or(value).to_owned(),
            None => format!("{} absent", self.name),
        }
    }
}

/// A program that gate is compared with or measured by.
struct Program {
    name: &'static str,
    command: fn() -> Result<Command>,
    /// The words by which it tells its version.
    words: &'static [&'static str],
}

const PROGRAMS: [Program; 7] = [
    Program {
        name: "iptables",
        command: iptables::program,
        words: &["--version"],
    },
    Program {
        name: "nft",
        command: nft::program,
        words: &["--version"],
    },
    Program {
        name: "HAProxy 2.6",
        command: || Release::System.command(),
        words: &["-v"],
    },
    Program {
        name: "HAProxy 3.0",
        command: || Release::Three.command(),
        words: &["-v"],
    },
    Program {
        name: "xdp-filter",
        command: xdp_filter::program,
        words: &["load", "--version"],
    },
    Program {
        name: "iperf3",
        command: iperf3::program,
        words: &["--version"],
    },
    Program {
        name: "tc",
        command: || Ok(Command::new("tc")),
        words: &["-V"],
    },
];

/// What bounds queues of connections and packets.
const SYSCTLS: [&str; 4] = [
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_syncookies",
    "net.core.netdev_max_backlog",
];

/// The versions of the programs that benchmarks run, asked of these very programs.
pub(super) fn programs(topology: &Topology) -> Vec<Answer> {
    let answer = |program: &Program| Answer {
        name: program.name.to_owned(),
        value: ask(topology, program).ok(),
    };
    PROGRAMS.iter().map(answer).collect()
}

fn ask(topology: &Topology, program: &Program) -> Result<String> {
    let mut command = (program.command)()?;
    // Its exit code means nothing: xdp-filter's is that of a failure.
    let output = topology.output(Side::Server, command.args(program.words), LIMIT)?;
    Ok(first_line(&output.stdout, &output.stderr).to_owned())
}

/// The first line that says something.
fn first_line<'a>(stdout: &'a str, stderr: &'a str) -> &'a str {
    let mut lines = stdout.lines().chain(stderr.lines()).map(str::trim);
    lines
        .find(|line| !line.is_empty())
        .unwrap_or("unknown version")
}

/// The sysctls as a new topology has them. Those that no namespace has are the machine's.
pub(super) fn sysctls(topology: &Topology) -> Vec<Answer> {
    let answer = |name: &str| {
        let own = || fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
        let value = topology.read_sysctl(Side::Server, name).ok();
        Answer {
            name: name.to_owned(),
            value: value.or_else(|| Some(own().ok()?.trim_end().to_owned())),
        }
    };
    SYSCTLS.into_iter().map(answer).collect()
}

/// What the interfaces of a new topology do. Both sides' are alike.
pub(super) fn offloads(topology: &Topology) -> Vec<Answer> {
    let answer = |offload: Offload| {
        let is_on = topology.is_offloaded(Side::Server, offload).ok();
        let word = is_on.map(|is_on| if is_on { "on" } else { "off" });
        Answer {
            name: offload.name().to_owned(),
            value: word.map(str::to_owned),
        }
    };
    Offload::ALL.into_iter().map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_says_something_is_the_version() {
        assert_eq!(
            first_line("\n iperf 3.12 (x)\nLinux\n", "y"),
            "iperf 3.12 (x)"
        );
        assert_eq!(
            first_line("", "nginx version: 1.22\n"),
            "nginx version: 1.22"
        );
        assert_eq!(first_line("", "\n"), "unknown version");
    }

    #[test]
    fn a_version_is_told_without_the_address_of_the_programs_site() {
        let answer = |value: Option<&str>| Answer {
            name: "HAProxy 3.0".to_owned(),
            value: value.map(str::to_owned),
        };
        let line = "HAProxy version 3.0.11 2026/05/20 - https://example.org/";
        assert_eq!(
            answer(Some(line)).version(),
            "HAProxy version 3.0.11 2026/05/20"
        );
        assert_eq!(answer(None).version(), "HAProxy 3.0 absent");
    }
}
