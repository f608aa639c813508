//! What systemd is told, where it started us (`sd_notify(3)`); nothing otherwise.

use std::time::Duration;

use sd_notify::NotifyState;

/// The socket may be gone; forwarding does not depend on it.
fn tell(states: &[NotifyState<'_>]) {
    drop(sd_notify::notify(states));
}

/// Everything works.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] ends it. With `Type=notify-reload`, systemd compares the time with that of its signal.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// For `systemctl status`.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// This process ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often [`alive`] has to be said: twice as often as systemd insists on it.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|insists| insists / 2).filter(|interval| !interval.is_zero())
}

/// The loop goes round.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}
