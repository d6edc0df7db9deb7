//! Checks by a command.

use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use super::CheckFailure;

/// Runs a shell command in a process group of its own, which must exit with 0.
pub(super) async fn run(command: &str) -> Result<(), CheckFailure> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = Group(child.id());
    let status = child.wait().await?;
    drop(group);
    if status.success() {
        return Ok(());
    }
    Err(CheckFailure::Exec(status))
}

/// A check's process group, which ends with the check: one that was given up, or that left
/// something behind, is killed whole.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // An error means that nothing of it is left.
            let _gone = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}
