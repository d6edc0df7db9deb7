//! `gate log`: the data path's debug records, as lines.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use gate_userspace::error::exit;
use gate_userspace::pins::Pins;
use gate_userspace::{datapath, report};
use log::{Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use crate::cli::Answer;

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
        let mut stdout = io::stdout().lock();
        if let Err(error) = writeln!(stdout, "{line}") {
            // A reader that has gone away has seen enough.
            let code = match error.kind() {
                io::ErrorKind::BrokenPipe => exit::DONE,
                _ => exit::FAILURE,
            };
            std::process::exit(code.into());
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
