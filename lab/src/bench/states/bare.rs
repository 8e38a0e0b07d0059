//! The least that any check of a crash state does in one guest: mount, read,
//! unmount.

use std::{fmt, num::NonZeroU32, time::Duration};

use anyhow::{Context, Result, ensure};
use plugpull_disk::View;
use serde::Deserialize;

use super::{Stage, python};
use crate::scenario::{Case, Named, TakenFor};

const PROGRAM: &str = include_str!("bare.py");
/// Of one visit, many times over; and of reading the disk thrice.
const EACH: Duration = Duration::from_millis(800);
const ALL: Duration = Duration::from_secs(120);

/// Mounts a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bare {
    /// Of a crash state, which recovers.
    pub(super) crash: f64,
    /// Of a disk that was unmounted.
    pub(super) clean: f64,
}

impl fmt::Display for Bare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { crash, clean } = self;
        write!(f, "{crash:.1} a second, of a clean disk {clean:.1}")
    }
}

/// Seconds, as the program says.
#[derive(Deserialize)]
struct Said {
    crash: f64,
    clean: f64,
    /// Pieces of the disk that recovery writes.
    changed: u64,
}

/// Mount a crash state so many times.
pub(super) fn measure(
    stage: Stage<'_>,
    case: &Case,
    crash: &View,
    times: NonZeroU32,
) -> Result<Bare> {
    let dir = tempfile::tempdir_in(stage.dir).context("make a directory for a guest")?;
    let spec = case.scenario.disk;
    let session = python::session(stage, &case.guest, spec, crash.clone(), &dir)?;
    // As our own guests take it: nobody will cut its power.
    session.take_for(TakenFor::WriteThrough)?;
    let args = [case.lower.fs.name(), &times.to_string()];
    let deadline = ALL + EACH * 2 * times.get();
    let said: Said = python::run(&session, PROGRAM, &args, deadline)?;
    session.pull_the_plug()?;
    ensure!(
        said.changed > 0,
        "the crash state was clean: nothing was recovered"
    );
    let times = f64::from(times.get());
    Ok(Bare {
        crash: times / said.crash,
        clean: times / said.clean,
    })
}
