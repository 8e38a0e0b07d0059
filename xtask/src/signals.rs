//! Interrupts that end a command in good order instead of at once.

use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};

/// What ends a command that a person started.
const ENDING: [i32; 3] = [
    signal_hook::consts::SIGINT,
    signal_hook::consts::SIGTERM,
    signal_hook::consts::SIGHUP,
];

/// From now on SIGINT, SIGTERM and SIGHUP only make this readable, for a poll.
pub(crate) fn readable() -> Result<UnixStream> {
    let (told, tell) = UnixStream::pair().context("make a socket pair")?;
    for signal in ENDING {
        let tell = tell.try_clone().context("duplicate a socket")?;
        signal_hook::low_level::pipe::register(signal, tell).context("take over a signal")?;
    }
    Ok(told)
}
