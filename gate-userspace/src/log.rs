//! `gate log`: the data path's debug records, as lines.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use gate_userspace::error::exit;
use gate_userspace::pins::Pins;
use gate_userspace::{datapath, report};
use log::{Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use crate::cli::{Answer, print};

/// Prints each record as a line.
struct Lines {
    json: bool,
}

impl Log for Lines {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let line = match self.json {
            true => report::answer(json!({ "record": text })),
            false => text,
        };
        if print(&(line + "\n")).is_err() {
            std::process::exit(exit::FAILURE.into());
        }
    }

    fn flush(&self) {}
}

/// Prints the records until it is stopped.
pub fn follow(pins: &Pins, json: bool) -> anyhow::Result<Answer> {
    let program = datapath::program_id(pins)?;
    let mut logger = EbpfLogger::init_from_id_with_logger(program, Lines { json })
        .context("open the data path's log")?;
    loop {
        logger.flush();
        let mut ready = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).context("poll the data path's log")?;
    }
}
