//! Interrupts while a child owns the terminal: noted, not died of.

use std::{
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};

/// Whether SIGINT or SIGTERM has come since [`hold`].
pub(crate) struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    pub(crate) fn happened(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

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

/// From now on SIGINT, SIGTERM and SIGHUP only set a flag.
pub(crate) fn hold() -> Result<Interrupted> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in ENDING {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("take over a signal")?;
    }
    Ok(Interrupted(flag))
}
