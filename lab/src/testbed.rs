//! What was prepared for a run, and how a test process reaches it.
//!
//! `xtask` prepares once (images, binaries, accelerator, templates, base
//! disks) and writes a [`Setup`] into the run's directory; each test process
//! opens it and starts guests from it. Nothing is built behind a test's back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use plugpull_disk::{AtomicUnit, DiskConfig, Honesty, Seed};
use plugpull_vm::{
    accel::Verdict as AccelVerdict,
    cache::{ContentHash, Home},
    guest::Payload,
    lock::{Slot, Slots},
    machine::{Bus, DiskShape, Medium, Shape},
    template::{Plan, Template},
    tools::Qemu,
};
use serde::{Deserialize, Serialize};

use crate::{
    artifacts::Artifacts,
    scenario::{self, CaseName, ImageName, Profile},
    sharing::Sharing,
};

/// Memory of a guest in MiB: PostgreSQL and a FUSE server fit many times over.
const MEMORY_MIB: u32 = 1024;
/// A test waits for a slot for as long as other tests may run.
const SLOT_DEADLINE: Duration = Duration::from_secs(3600);
/// The file in the run's directory.
const FILE: &str = "setup.json";

/// What `xtask` prepared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Where all randomness of the run comes from.
    pub seed: u64,
    /// Which profile runs.
    pub profile: Profile,
    /// The cases that were chosen.
    pub cases: Vec<CaseName>,
    /// A scenario file of the user's, instead of the built-in ones.
    pub scenario_file: Option<PathBuf>,
    /// Keep what passing tests leave.
    pub keep: bool,
    /// What of it other machines do.
    #[serde(default)]
    pub sharing: Sharing,
    /// The accelerator and why.
    pub accel: AccelVerdict,
    /// The QEMU to run.
    pub qemu: Qemu,
    /// The images by name.
    pub images: BTreeMap<ImageName, ImageSetup>,
    /// The payload disk.
    pub payload: PathBuf,
    /// The users' files on it, by their places there.
    #[serde(default)]
    pub brought: BTreeMap<PathBuf, ContentHash>,
    /// The binaries, by content.
    pub artifacts: Artifacts,
}

/// An image that is ready to boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageSetup {
    /// What it boots.
    pub boot: Payload,
    /// Its root disk.
    pub root: PathBuf,
    /// The root disk's size in bytes.
    pub root_bytes: u64,
    /// `uname -r`.
    pub kernel: String,
    /// Hash over the packages in it.
    pub packages_hash: String,
    /// Whether these are the packages that its lock pins.
    pub as_locked: bool,
    /// Hashes of everything that ends up in a guest's memory at boot.
    pub content: Vec<String>,
}

impl Setup {
    /// Write it into a run's directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, run: &Path) -> Result<()> {
        plugpull_vm::cache::publish_bytes(&run.join(FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// Read it from a run's directory.
    ///
    /// # Errors
    /// When there is none or it is malformed.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(FILE);
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is malformed", path.display()))
    }
}

/// Everything needed to start guests.
pub struct Testbed {
    home: Home,
    setup: Setup,
    slots: Slots,
}

impl Testbed {
    /// Open what was prepared.
    ///
    /// # Errors
    /// When the locks cannot be made.
    pub fn new(home: Home, setup: Setup) -> Result<Self> {
        let cores = std::thread::available_parallelism()
            .context("count the processors")?
            .get();
        let slots = Slots::new(&home.cache.join("slots"), cores)?;
        Ok(Self { home, setup, slots })
    }

    /// Where things are.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// What was prepared.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// An image that was prepared.
    ///
    /// # Errors
    /// When the run did not prepare it.
    pub fn image(&self, name: &ImageName) -> Result<&ImageSetup> {
        self.setup
            .images
            .get(name)
            .with_context(|| format!("the image {name} was not prepared for this run"))
    }

    /// How many times slower than the reference this host is.
    pub fn slowness(&self) -> f64 {
        self.setup.accel.slowness()
    }

    /// A deadline, scaled by the host's speed.
    pub fn scale(&self, timeout: Duration) -> Duration {
        timeout.mul_f64(self.slowness())
    }

    /// The right to run one guest; one for each processor of the host.
    pub(crate) fn slot(&self) -> Result<Slot> {
        Ok(self.slots.acquire(SLOT_DEADLINE)?)
    }

    /// The same if one is free now.
    pub(crate) fn free_slot(&self) -> Result<Option<Slot>> {
        Ok(self.slots.try_acquire()?)
    }

    /// How many guests may run at once.
    pub fn guests_at_once(&self) -> usize {
        self.slots.count()
    }

    /// Take the setup back.
    pub fn into_setup(self) -> Setup {
        self.setup
    }

    /// The template for an image and a data disk, made now if it is missing.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn template(&self, image: &ImageName, disk: scenario::Disk) -> Result<Template> {
        self.with_plan(image, disk, Template::ensure)
    }

    /// Whether that template has been made.
    ///
    /// # Errors
    /// When the run did not prepare the image, or the template is malformed.
    pub fn has_template(&self, image: &ImageName, disk: scenario::Disk) -> Result<bool> {
        self.with_plan(image, disk, |plan| Ok(Template::find(plan)?.is_some()))
    }

    /// Do something with the plan of a template.
    pub(crate) fn with_plan<T>(
        &self,
        image: &ImageName,
        disk: scenario::Disk,
        then: impl FnOnce(&Plan<'_>) -> Result<T>,
    ) -> Result<T> {
        let image = self.image(image)?;
        let shape = Shape {
            accel: self.setup.accel.accel(),
            cpus: cpus(self.setup.profile),
            memory_mib: MEMORY_MIB,
            disks: vec![
                disk_shape("root", Bus::Virtio, image.root_bytes, 512, true),
                disk_shape(
                    "payload",
                    Bus::Virtio,
                    plugpull_vm::payload::SIZE,
                    512,
                    true,
                ),
                disk_shape(
                    crate::session::DATA,
                    bus(disk.bus),
                    disk.size.0,
                    disk.unit,
                    false,
                ),
            ],
        };
        let media = [
            Medium::File(image.root.clone()),
            Medium::File(self.setup.payload.clone()),
            Medium::Null,
        ];
        then(&Plan {
            qemu: &self.setup.qemu,
            shape: &shape,
            media: &media,
            payload: &image.boot,
            content: &image.content,
            templates: &self.home.cache.join("templates"),
            boot_lock: &self.home.cache.join("boot.lock"),
            slowness: self.slowness(),
        })
    }

    /// How the disk of a session behaves.
    pub(crate) fn disk_config(&self, disk: scenario::Disk, record: bool, seed: u64) -> DiskConfig {
        DiskConfig {
            honesty: match disk.cache {
                scenario::Cache::None => Honesty::None,
                scenario::Cache::Volatile => Honesty::Volatile,
                scenario::Cache::LiesOnFlush => Honesty::LiesOnFlush,
            },
            unit: if disk.unit == 512 {
                AtomicUnit::U512
            } else {
                AtomicUnit::U4096
            },
            seed: Seed(seed),
            record,
        }
    }
}

/// Processors of a guest.
///
/// As many guests run at once as the host has processors. Where each of them
/// has two, a FUSE request wakes a virtual processor whose host thread must
/// first be scheduled: measured on two cores under translation, an 8 KiB write
/// took 0.6 ms with one processor and from 0.8 to 10 ms with two, and a case of
/// `full` five times as long. The nights pay for real parallelism inside the
/// guest.
fn cpus(profile: Profile) -> u32 {
    match profile {
        Profile::Smoke | Profile::Full => 1,
        Profile::Nightly => 2,
    }
}

fn disk_shape(
    serial: &str,
    bus: Bus,
    bytes: u64,
    physical_block: u32,
    read_only: bool,
) -> DiskShape {
    DiskShape {
        serial: serial.to_owned(),
        bus,
        bytes,
        physical_block,
        read_only,
    }
}

fn bus(bus: scenario::Bus) -> Bus {
    match bus {
        scenario::Bus::Virtio => Bus::Virtio,
        scenario::Bus::Nvme => Bus::Nvme,
        scenario::Bus::Scsi => Bus::Scsi,
    }
}

/// The run that `xtask` has announced to this process, if any.
///
/// # Errors
/// When there is none: tests are started by `cargo xtask test-vm`.
pub fn announced() -> Result<PathBuf> {
    match std::env::var_os(RUN_VARIABLE) {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => bail!(
            "{RUN_VARIABLE} is not set: guests need images, binaries and templates that \
             `cargo xtask test-vm` prepares; use it instead of calling nextest"
        ),
    }
}

/// Names the run's directory to the test processes.
pub const RUN_VARIABLE: &str = "PLUGPULL_RUN";
