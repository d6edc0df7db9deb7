//! `gate log`: the data path's debug records, as lines.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use gate_userspace::datapath;
use gate_userspace::pins::Pins;
use log::{Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::{Answer, print};

struct Lines;

impl Log for Lines {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if print(&format!("{}\n", record.args())).is_err() {
            std::process::exit(1);
        }
    }

    fn flush(&self) {}
}

/// Prints the records until it is stopped.
pub fn follow(pins: &Pins) -> anyhow::Result<Answer> {
    let program = datapath::program_id(pins)?;
    let mut logger =
        EbpfLogger::init_from_id_with_logger(program, Lines).context("open the data path's log")?;
    loop {
        logger.flush();
        let mut ready = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).context("poll the data path's log")?;
    }
}
