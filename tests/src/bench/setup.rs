//! What a run was measured on.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::sysinfo::sysinfo;
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use super::record::{Raw, Report};

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
        })
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
                 minute before: {:.2}\n",
                self.day(),
                self.kernel,
                self.processors,
                self.processor,
                self.memory as f64 / f64::from(1 << 30),
                self.load,
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
        assert!(setup.report().text.contains(&setup.kernel));
    }
}
