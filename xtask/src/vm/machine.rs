//! One run of a machine: QEMU, and what comes out of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::matrix::{Machine, Vm};
use super::packages::{Qemu, Unpacked};
use crate::process::line;

/// A machine that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(180);

/// What is said by [`super::image`]'s first process begins with this.
const MARK: &str = "gate-vm: ";

/// How to start one.
pub struct Setup<'a> {
    /// What runs it.
    pub qemu: &'a Qemu,
    /// By which means.
    pub machine: &'a Machine,
    /// What it has.
    pub vm: &'a Vm,
    /// The kernel it boots.
    pub kernel: &'a Unpacked,
    /// The files it has.
    pub initramfs: PathBuf,
    /// Where the kernel's messages go.
    pub console: PathBuf,
}

/// What a machine says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// It runs this kernel now.
    Booted(&'a str),
    /// A program of tests begins.
    Begins(&'a str),
    /// A program of tests ended with this exit code.
    Ended(i32),
    /// All of them have ended.
    Done,
    /// A line of a test's.
    Line(&'a str),
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Self {
        let Some((word, rest)) = line
            .strip_prefix(MARK)
            .map(|said| said.split_once(' ').unwrap_or((said, "")))
        else {
            return Self::Line(line);
        };
        match (word, rest.parse()) {
            ("booted", _) => Self::Booted(rest),
            ("run", _) => Self::Begins(rest),
            ("end", Ok(code)) => Self::Ended(code),
            ("done", _) => Self::Done,
            _ => Self::Line(line),
        }
    }
}

impl Setup<'_> {
    /// Runs the machine until it says that it is done, and hands on what it says. An error says
    /// why it did not come to that.
    pub fn run(&self, limit: Duration, mut handle: impl FnMut(Event)) -> Result<()> {
        let mut command = self.command()?;
        let mut running = Running::start(command.stdout(Stdio::piped()))?;
        let lines = running.lines();
        let end = Instant::now() + limit;
        let mut heard = Instant::now();
        let mut printed = 0;
        let mut done = false;
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    heard = Instant::now();
                    let event = Event::parse(line.trim_end_matches('\r'));
                    done |= event == Event::Done;
                    handle(event);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let size = fs::metadata(&self.console).map_or(0, |data| data.len());
                    if size != printed {
                        (heard, printed) = (Instant::now(), size);
                    }
                }
            }
            if Instant::now() > end {
                bail!("it took longer than {limit:?}");
            }
            if heard.elapsed() > SILENCE {
                bail!("it said nothing for {SILENCE:?}");
            }
        }
        let ended = running.child.wait().context("wait for QEMU")?;
        match (done, ended.success()) {
            (true, _) => Ok(()),
            (false, true) => bail!("it stopped before its end"),
            (false, false) => bail!("QEMU failed ({ended}): {}", running.complaint()),
        }
    }

    /// Runs the machine with this terminal as its own.
    pub fn interact(&self) -> Result<()> {
        let mut command = self.command()?;
        command.stdin(Stdio::inherit()).stderr(Stdio::inherit());
        let status = command
            .status()
            .with_context(|| format!("run {}", line(&command)))?;
        if !status.success() {
            bail!("QEMU failed ({status})");
        }
        Ok(())
    }

    /// The last lines of the kernel.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.qemu.command()?;
        // A panic, and what should be one, ends the machine at once.
        let append = format!(
            "console=ttyS0 loglevel=5 panic=-1 oops=panic {}",
            self.machine.append
        );
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            // A clock that is read by leaving the machine is slow. Once suspended, a `q35` can be
            // neither suspended again nor switched off.
            .args(["-no-reboot", "-machine", "pc,hpet=off"])
            .args(["-accel", &self.machine.accel, "-cpu", &self.machine.cpu])
            .args(["-smp", &self.vm.cpus.to_string(), "-m", &self.vm.memory])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", append.trim_end()])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null());
        Ok(command)
    }
}

/// A QEMU that ends with this.
struct Running {
    child: Child,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {}", line(command)))?;
        Ok(Self { child })
    }

    /// What comes out of it, line by line.
    fn lines(&mut self) -> Receiver<String> {
        let (sender, receiver) = channel();
        if let Some(output) = self.child.stdout.take() {
            thread::spawn(move || {
                for text in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    if sender.send(String::from_utf8_lossy(&text).into()).is_err() {
                        break;
                    }
                }
            });
        }
        receiver
    }

    /// The last line that it wrote to stderr.
    fn complaint(&mut self) -> String {
        let Some(stderr) = self.child.stderr.take() else {
            return String::new();
        };
        let lines = BufReader::new(stderr).lines().map_while(Result::ok);
        lines.last().unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors can only mean that it has gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_what_tests_print() {
        for (line, event) in [
            ("gate-vm: booted 6.1.0", Event::Booted("6.1.0")),
            ("gate-vm: run tests cli", Event::Begins("tests cli")),
            ("gate-vm: end 101", Event::Ended(101)),
            ("gate-vm: done", Event::Done),
            ("gate-vm: end", Event::Line("gate-vm: end")),
            ("test gate-vm: done", Event::Line("test gate-vm: done")),
        ] {
            assert_eq!(Event::parse(line), event);
        }
    }
}
