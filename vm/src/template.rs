//! Templates and clones: boot once, save, start every test from the saved
//! state in a fraction of a second.
//!
//! Memory stays in a file that clones map copy-on-write (`x-ignore-shared`);
//! only the state of the devices, some hundred KiB, is migrated to a file.
//! Disks are not part of the saved state: the saved guest has touched only its
//! read-only root disk.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use plugpull_protocol::{Hello, Phase, Request};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    cache::{self, KeyHasher},
    guest::{Guest, Payload, PromiseSink, Start},
    lock::FileLock,
    machine::{Medium, MemoryFile, Shape},
    tools::Qemu,
};

/// Changes whenever the way templates are made does.
const FORMAT: u32 = 1;
/// How long a template of another process may take to be built.
const LOCK_DEADLINE: Duration = Duration::from_secs(300);
/// From exec to the agent's hello, cold, on a host of speed 1.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// Saving and restoring the devices' state takes tens of milliseconds.
const MIGRATE_DEADLINE: Duration = Duration::from_secs(60);
/// A clone that restored answers in a quarter of a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A saved guest.
#[derive(Debug, Clone)]
pub struct Template {
    dir: PathBuf,
    shape: Shape,
    payload: Payload,
    saved: Saved,
}

/// What is kept beside the saved state.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Saved {
    hello: Hello,
    boot_ms: u64,
}

/// What a template is made from.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The QEMU to run.
    pub qemu: &'a Qemu,
    /// The machine's shape.
    pub shape: &'a Shape,
    /// One medium a disk; only read-only ones may hold anything.
    pub media: &'a [Medium<'a>],
    /// What it boots.
    pub payload: &'a Payload,
    /// What else the guest's memory depends on: hashes of kernel, initramfs
    /// and root disk.
    pub content: &'a [String],
    /// Directory of all templates.
    pub templates: &'a Path,
    /// Lock that serialises cold boots.
    pub boot_lock: &'a Path,
    /// How many times slower than the reference this host is; at least 1.
    pub slowness: f64,
}

impl Plan<'_> {
    fn key(&self) -> String {
        let mut key = KeyHasher::new("template")
            .field("format", FORMAT.to_string())
            .field("qemu", &self.qemu.version)
            .field("shape", format!("{:?}", self.shape))
            .field("words", self.payload.words.join(" "));
        for part in self.content {
            key = key.field("content", part);
        }
        key.finish().short().to_owned()
    }
}

impl Template {
    /// The template of a plan, booted and saved now if it is missing.
    ///
    /// # Errors
    /// When the guest does not come up; its console stays in the templates'
    /// directory.
    pub fn ensure(plan: &Plan<'_>) -> Result<Self> {
        let dir = plan.templates.join(plan.key());
        if let Some(template) = Self::open(&dir, plan)? {
            return Ok(template);
        }
        fs::create_dir_all(plan.templates)
            .with_context(|| format!("make {}", plan.templates.display()))?;
        let lock = plan.templates.join(format!("{}.lock", plan.key()));
        let _lock = FileLock::exclusive(&lock, LOCK_DEADLINE)?;
        if let Some(template) = Self::open(&dir, plan)? {
            return Ok(template);
        }
        cache::publish_dir(&dir, |making| Self::make(plan, making))?;
        Self::open(&dir, plan)?
            .with_context(|| format!("the template {} has just been made", dir.display()))
    }

    /// The template of a plan, if it has been made.
    ///
    /// # Errors
    /// When its description cannot be read.
    pub fn find(plan: &Plan<'_>) -> Result<Option<Self>> {
        Self::open(&plan.templates.join(plan.key()), plan)
    }

    fn open(dir: &Path, plan: &Plan<'_>) -> Result<Option<Self>> {
        let path = dir.join("saved.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let saved = serde_json::from_slice(&text)
            .with_context(|| format!("{} is malformed", path.display()))?;
        Ok(Some(Self {
            dir: dir.to_owned(),
            shape: plan.shape.clone(),
            payload: plan.payload.clone(),
            saved,
        }))
    }

    fn make(plan: &Plan<'_>, dir: &Path) -> Result<()> {
        // Two boots at once starve each other's timer calibration under TCG.
        let boot = FileLock::exclusive(plan.boot_lock, LOCK_DEADLINE)?;
        let start = Instant::now();
        let guest = Guest::start(Start {
            qemu: plan.qemu,
            shape: plan.shape,
            media: plan.media,
            payload: plan.payload,
            memory: MemoryFile::Shared(dir.join("memory")),
            incoming: false,
            phase: Phase::Firmware,
            // Not in the unfinished directory, which goes when the boot fails.
            logs: &plan.templates.join("logs").join(plan.key()),
            promises: Arc::new(|_| {}),
        })?;
        let hello = guest.hello(BOOT_DEADLINE.mul_f64(plan.slowness))?;
        ensure!(
            hello.version == plugpull_protocol::VERSION,
            "the guest speaks version {} of the protocol, this host {}",
            hello.version,
            plugpull_protocol::VERSION
        );
        guest.request(Request::Ping, ANSWER_DEADLINE.mul_f64(plan.slowness))?;
        let boot_ms = u64::try_from(start.elapsed().as_millis())?;
        drop(boot);
        guest.stop()?;
        set_capabilities(&guest)?;
        let uri = format!("file:{}", dir.join("devices").display());
        guest.qmp().command("migrate", json!({ "uri": uri }))?;
        guest.qmp().migrated(MIGRATE_DEADLINE)?;
        guest.quit(MIGRATE_DEADLINE)?;
        let saved = serde_json::to_vec_pretty(&Saved { hello, boot_ms })?;
        fs::write(dir.join("saved.json"), saved).context("write the template's description")
    }

    /// Milliseconds from exec to the agent's first answer, when it was made.
    pub fn boot_ms(&self) -> u64 {
        self.saved.boot_ms
    }

    /// `uname -r` of the guest.
    pub fn kernel(&self) -> &str {
        &self.saved.hello.kernel
    }

    /// Start a clone and wait for its first answer.
    ///
    /// # Errors
    /// When QEMU does not restore the state or the guest does not answer.
    pub fn clone_guest(
        &self,
        qemu: &Qemu,
        media: &[Medium<'_>],
        logs: &Path,
        promises: PromiseSink,
        slowness: f64,
    ) -> Result<Guest> {
        let guest = Guest::start(Start {
            qemu,
            shape: &self.shape,
            media,
            payload: &self.payload,
            memory: MemoryFile::Private(self.dir.join("memory")),
            incoming: true,
            phase: Phase::Agent,
            logs,
            promises,
        })?;
        // `-incoming file:` on the command line would start before the
        // capability is set, and fail.
        set_capabilities(&guest)?;
        let uri = format!("file:{}", self.dir.join("devices").display());
        guest
            .qmp()
            .command("migrate-incoming", json!({ "uri": uri }))?;
        guest.qmp().migrated(MIGRATE_DEADLINE)?;
        guest.qmp().command("cont", json!({}))?;
        guest
            .request(Request::Ping, ANSWER_DEADLINE.mul_f64(slowness))
            .context("first answer of a clone")?;
        Ok(guest)
    }
}

fn set_capabilities(guest: &Guest) -> Result<()> {
    let capabilities = json!([
        { "capability": "x-ignore-shared", "state": true },
        { "capability": "events", "state": true },
    ]);
    guest.qmp().command(
        "migrate-set-capabilities",
        json!({ "capabilities": capabilities }),
    )?;
    Ok(())
}
