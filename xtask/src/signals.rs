//! Interrupts while a child owns the terminal: noted, not died of.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};

/// Whether SIGINT or SIGTERM has come since [`hold`].
pub(crate) struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    pub(crate) fn happened(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP only set a flag.
pub(crate) fn hold() -> Result<Interrupted> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("take over a signal")?;
    }
    Ok(Interrupted(flag))
}
