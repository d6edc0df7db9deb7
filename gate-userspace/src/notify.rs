//! What the daemon tells systemd, by `sd_notify(3)`; nothing where systemd didn't start it.

use std::time::Duration;

use log::warn;
use sd_notify::NotifyState;

/// It has started, or reloaded, and does its work; `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows from here on.
pub fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// It reads its configuration anew, and will be [`ready`] again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // systemd 253 and later want the time with it.
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(_) => send(&[NotifyState::Reloading]),
    }
}

/// It ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// It is alive. To be called once in each [`watchdog_interval`].
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is due, half the time after which systemd kills the daemon (`WatchdogSec=`);
/// none where no watchdog waits.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    let timeout = sd_notify::watchdog_enabled()?;
    (!timeout.is_zero()).then_some(timeout / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("systemd could not be told: {error}");
    }
}
