//! What the suites share that start guests themselves; the suites live in
//! `suites/`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use plugpull_disk::View;
use plugpull_lab::{
    base::{Base, Kind, Wanted},
    rundir::{RunDir, TestDir},
    scenario::{self, ByteCount, Fs, ImageName, Lower},
    session::{Opening, Session},
    testbed::{Setup, Testbed, announced},
};
use plugpull_vm::cache::Home;

/// The disk and the image of the smallest power-cut scenario, whose template is
/// there already.
pub const DISK: scenario::Disk = scenario::Disk {
    size: ByteCount(64 << 20),
    bus: scenario::Bus::Virtio,
    cache: scenario::Cache::Volatile,
    unit: 4096,
};
/// The image that tests take if the run has it.
pub const IMAGE: &str = "debian13";

/// A test's place in the announced run, and the means to start guests.
pub struct Stage {
    /// What was prepared.
    pub bed: Testbed,
    /// The image of its guests.
    pub image: ImageName,
    /// Where its artefacts go.
    pub dir: TestDir,
}

impl Stage {
    /// The place of a test of a suite, by its name `suite::test`.
    ///
    /// # Errors
    /// When no run is announced, or it prepared nothing to start guests from.
    pub fn new(test: &str) -> Result<Self> {
        let run = RunDir::open(&announced()?)?;
        let setup = Setup::read(run.path())?;
        let preferred = ImageName::new(IMAGE);
        let image = match setup.images.contains_key(&preferred) {
            true => preferred,
            false => setup.images.keys().next().context("no image")?.clone(),
        };
        Ok(Self {
            bed: Testbed::new(Home::find()?, setup)?,
            image,
            dir: run.start_test(test)?,
        })
    }

    /// The disk's log, by a name that is free also when the test is run again.
    pub fn log(&self) -> PathBuf {
        let name = format!("{}.disklog", std::process::id());
        self.dir.artefact(&name)
    }

    /// A guest on a disk with an empty ext4.
    ///
    /// # Errors
    /// When the disk or the guest cannot be made.
    pub fn session(&self, record: bool) -> Result<Session<'_>> {
        let lower = ext4();
        let base = Base::ensure(
            &self.bed,
            Wanted {
                image: &self.image,
                lower: &lower,
                disk: DISK,
                kind: Kind::Empty,
            },
        )?;
        self.session_on(base.view()?, record)
    }

    /// A guest on a disk of this content.
    ///
    /// # Errors
    /// When the guest cannot be started.
    pub fn session_on(&self, view: View, record: bool) -> Result<Session<'_>> {
        Session::start(
            &self.bed,
            Opening {
                image: &self.image,
                spec: DISK,
                view,
                log: self.log(),
                record,
                seed: 1,
                logs: self.dir.path(),
                slot: None,
            },
        )
    }
}

/// A lower filesystem with nothing special.
pub fn ext4() -> Lower {
    Lower {
        name: String::from("ext4"),
        fs: Fs::Ext4,
        mkfs: Vec::new(),
        options: String::new(),
        mounted: true,
    }
}
