//! Figures: how fast guests come up, what the recording disk costs against
//! named peers, how many crash states are checked in a second, how often
//! controls are caught by nature.
//!
//! Nothing here passes or fails: a bench shows, tests judge. What is compared
//! is measured in one run, its peers taking turns within each round, so that
//! a busy host slows all of them.

mod controls;
mod dd;
mod disk;
mod figures;
pub mod fs;
mod states;
mod table;
mod vm;

use std::path::Path;

pub use controls::{cases, controls};
pub use disk::disk;
pub use figures::{
    Bound, Figure, Goal, Group, Rate, Setting, Sheet, Summary, Unit, Value, costs, wilson,
};
pub use states::{States, states};
pub use table::table;
pub use vm::vm;

use crate::{
    progress::{Event, Progress},
    scenario::{Bus, ByteCount, Cache, Disk},
    testbed::Testbed,
};

/// What every bench needs.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    /// Guests come from here.
    pub bed: &'a Testbed,
    /// For logs and what is made on the way; on the disk of the workspace.
    pub dir: &'a Path,
    /// Told what goes on.
    pub progress: &'a dyn Progress,
}

impl Stage<'_> {
    fn tell(&self, text: String) {
        self.progress.tell(&Event::Notice { text });
    }
}

/// The data disk of most scenarios.
const DATA_DISK: Disk = Disk {
    size: ByteCount(1 << 30),
    bus: Bus::Virtio,
    cache: Cache::Volatile,
    unit: 4096,
};
