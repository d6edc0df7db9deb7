//! What a run was measured on.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::sysinfo::sysinfo;
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

mod asked;

pub use asked::Answer;

use super::record::{Raw, Report};
use crate::topology::Topology;

/// The machine, and what ran on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Seconds since 1970, in UTC.
    pub begun: u64,
    /// Gate's revision, and `-dirty` where files differ from it; none outside a repository.
    pub revision: Option<String>,
    /// The kernel's release and version.
    pub kernel: String,
    /// The processor's model, and the hypervisor where one is known.
    pub processor: String,
    /// How many processors there are.
    pub processors: usize,
    /// Memory, in bytes.
    pub memory: u64,
    /// What ran on the machine beside the benchmark, over the minute before: the load average.
    pub load: f64,
    /// The programs that gate is compared with and measured by, and what each told of its version;
    /// nothing where it is absent. Here and below: empty in older figures.
    #[serde(default)]
    pub programs: Vec<Answer>,
    /// Sysctls of the network, as each benchmark finds them.
    #[serde(default)]
    pub sysctls: Vec<Answer>,
    /// What the veth pair's interfaces do in the processor's stead: `on` or `off`.
    #[serde(default)]
    pub offloads: Vec<Answer>,
}

impl Setup {
    /// The day on which it was, as `2026-11-21`, in UTC.
    pub fn day(&self) -> String {
        let begun = UNIX_EPOCH + Duration::from_secs(self.begun);
        let text = humantime::format_rfc3339_seconds(begun).to_string();
        text.chars().take_while(|letter| *letter != 'T').collect()
    }

    /// That of this machine, before anything is measured.
    ///
    /// # Errors
    /// The kernel's.
    pub fn here() -> Result<Self> {
        let name = uname().context("uname")?;
        let system = sysinfo().context("sysinfo")?;
        let processors = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let hypervisor = match field(&processors, "flags") {
            Some(flags) if flags.split(' ').any(|flag| flag == "hypervisor") => ", virtual",
            Some(_) | None => "",
        };
        let model = field(&processors, "model name").unwrap_or("unknown");
        Ok(Self {
            begun: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            revision: revision(),
            kernel: format!(
                "{} {}",
                name.release().to_string_lossy(),
                name.version().to_string_lossy()
            ),
            processor: format!("{model}{hypervisor}"),
            processors: std::thread::available_parallelism()?.get(),
            memory: system.ram_total(),
            load: system.load_average().0,
            programs: Vec::new(),
            sysctls: Vec::new(),
            offloads: Vec::new(),
        })
    }

    /// The same, and what the programs beside gate and the network answer. Needs root.
    ///
    /// # Errors
    /// A topology can't be made.
    pub fn asked(self) -> Result<Self> {
        let topology = Topology::new()?;
        Ok(Self {
            programs: asked::programs(&topology),
            sysctls: asked::sysctls(&topology),
            offloads: asked::offloads(&topology),
            ..self
        })
    }

    /// Lines of the page about what was asked; none where nothing was.
    fn answers(&self) -> String {
        let line = |title: &str, words: Vec<String>, between: &str| match words.is_empty() {
            true => String::new(),
            false => format!("- {title}: {}\n", words.join(between)),
        };
        let pair = |answer: &Answer| {
            let value = answer.value.as_deref().unwrap_or("unknown");
            format!("{} {value}", answer.name)
        };
        let programs = self.programs.iter().map(Answer::version).collect();
        let sysctls = self.sysctls.iter().map(pair).collect();
        let offloads = self.offloads.iter().map(pair).collect();
        line("peers and tools", programs, "; ")
            + &line(
                "sysctls of a new namespace, where a benchmark does not say otherwise",
                sysctls,
                ", ",
            )
            + &line("offloads of the veth pair", offloads, ", ")
    }
}

impl Raw for Setup {
    const NAME: &'static str = "setup";

    fn report(&self) -> Report {
        let revision = self.revision.as_deref().unwrap_or("unknown");
        Report {
            brief: None,
            text: format!(
                "- {}, Gate {revision}\n- Linux {}\n- {} x {}, {:.1} GiB of memory\n- load average in the \
                 minute before: {:.2}\n{}",
                self.day(),
                self.kernel,
                self.processors,
                self.processor,
                self.memory as f64 / f64::from(1 << 30),
                self.load,
                self.answers(),
            ),
            plots: Vec::new(),
        }
    }
}

/// The first value of that name in `/proc/cpuinfo`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn revision() -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_processors_is_found() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.6 GHz\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2.6 GHz"));
        assert_eq!(field(text, "flags"), Some("fpu hypervisor"));
        assert_eq!(field(text, "stepping"), None);
    }

    #[test]
    fn a_day_is_told() {
        let setup = Setup {
            begun: 1_795_305_600,
            ..Setup::here().unwrap()
        };
        assert_eq!(setup.day(), "2026-11-22");
    }

    #[test]
    fn this_machine_is_told() {
        let setup = Setup::here().unwrap();
        assert!(setup.processors > 0 && setup.memory > 0 && setup.begun > 0);
        let text = setup.report().text;
        assert!(
            text.contains(&setup.kernel) && !text.contains("peers and tools"),
            "{text}"
        );
    }

    fn answer(name: &str, value: Option<&str>) -> Answer {
        Answer {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_asked_is_told_and_what_is_absent_too() {
        let setup = Setup {
            programs: vec![
                answer("nft", Some("nftables v1.0.6 (Lester Gooch #5)")),
                answer("xdp-filter", None),
            ],
            sysctls: vec![
                answer("net.core.somaxconn", Some("4096")),
                answer("net.ipv4.tcp_syncookies", None),
            ],
            offloads: vec![answer("GRO", Some("off")), answer("TSO", Some("on"))],
            ..Setup::here().unwrap()
        };
        let text = setup.report().text;
        let (_, lines) = text.split_once("- peers and tools: ").unwrap();
        assert_eq!(
            lines,
            "nftables v1.0.6 (Lester Gooch #5); xdp-filter absent\n\
             - sysctls of a new namespace, where a benchmark does not say otherwise: \
             net.core.somaxconn 4096, net.ipv4.tcp_syncookies unknown\n\
             - offloads of the veth pair: GRO off, TSO on\n"
        );
    }

    #[test]
    fn a_setup_that_asked_nothing_is_read() {
        let mut json = serde_json::to_value(Setup::here().unwrap()).unwrap();
        for name in ["programs", "sysctls", "offloads"] {
            assert!(json.as_object_mut().unwrap().remove(name).is_some());
        }
        let setup: Setup = serde_json::from_value(json).unwrap();
        assert!(setup.programs.is_empty() && setup.sysctls.is_empty());
        assert!(setup.offloads.is_empty());
    }
}
