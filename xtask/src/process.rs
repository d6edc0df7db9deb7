//! Running other programs.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Runs a program to its end and fails when it fails. What it prints goes to stderr.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// What a program prints.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("run {}", line(command)))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}",
            line(command),
            output.status,
            message.trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what {} prints", line(command)))
}

/// Whether a program of this name is in PATH.
pub fn found(name: &str) -> bool {
    find(name).is_some()
}

/// Where a program of this name is in PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

/// Whether this is a file that may be executed.
pub fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// How this process can run a program as root. Asked before a long build, not after it.
pub enum Root {
    /// It is root.
    Already,
    /// Through sudo.
    Sudo,
}

impl Root {
    /// Fails when there is no way.
    pub fn find() -> Result<Self> {
        if is_root()? {
            Ok(Self::Already)
        } else if found("sudo") {
            Ok(Self::Sudo)
        } else {
            bail!("this needs root, and there is no sudo: run it as root");
        }
    }

    /// Becomes `program`. Returns only when that fails.
    pub fn exec(
        &self,
        program: &Path,
        args: &[String],
        variables: &[(&str, PathBuf)],
    ) -> anyhow::Error {
        let mut command = self.command(program, variables);
        let error = command.args(args).exec();
        anyhow!(error).context(format!("run {}", line(&command)))
    }

    /// The program as root, with these variables.
    pub fn command(&self, program: &Path, variables: &[(&str, PathBuf)]) -> Command {
        match self {
            Self::Already => {
                let mut command = Command::new(program);
                command.envs(variables.iter().map(|(name, value)| (name, value)));
                command
            }
            // Through `env`, because sudo may be set to keep no variable, -E or not.
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-E", "env"]);
                for (name, value) in variables {
                    command.arg(format!("{name}={}", value.display()));
                }
                command.arg(program);
                command
            }
        }
    }
}

/// Root's process owns its own /proc entry.
fn is_root() -> Result<bool> {
    let data = fs::metadata("/proc/self").context("read the owner of /proc/self")?;
    Ok(data.uid() == 0)
}

/// The command as one would type it, for messages.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut line = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
