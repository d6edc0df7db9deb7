//! What Ctrl-C and SIGTERM do: end every topology, then this process.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::topology;

static STOPPED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM end the topologies and the process, with 130 and 143.
pub fn on_signal() -> Result<()> {
    let (ready, is_ready) = mpsc::channel();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || wait(&ready))
        .context("start a thread")?;
    is_ready.recv().context("start the signal thread")?
}

/// Once a signal has come, never returns: what the other threads meet then is not worth a word.
pub fn hush() {
    while STOPPED.load(Ordering::SeqCst) {
        thread::park();
    }
}

fn wait(ready: &mpsc::Sender<Result<()>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error).context("start a runtime"))),
    };
    let code = runtime.block_on(async {
        let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        let [Ok(mut interrupt), Ok(mut terminate)] = signals else {
            return Err(anyhow::anyhow!("cannot handle SIGINT and SIGTERM"));
        };
        // The receiver waits for exactly this.
        let _ = ready.send(Ok(()));
        let number = tokio::select! {
            _ = interrupt.recv() => libc::SIGINT,
            _ = terminate.recv() => libc::SIGTERM,
        };
        Ok(128 + number)
    });
    match code {
        Ok(code) => {
            STOPPED.store(true, Ordering::SeqCst);
            eprintln!("gate-lab: stopped by a signal; cleaning up");
            topology::end_all();
            exit(code);
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}
