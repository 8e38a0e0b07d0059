//! Which accelerator this host really has, found by booting a kernel on it.
//!
//! `/dev/kvm` may exist, open, answer its API version and create machines, and
//! still not run a stock kernel: nested and paravirtual hosts do that. QEMU's
//! own `-accel kvm -accel tcg` does not fall back then, because KVM "works". So
//! the verdict comes from a boot under a deadline, and is kept for as long as
//! the host stays booted.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use plugpull_protocol::Phase;
use serde::{Deserialize, Serialize};

use crate::{
    cache,
    guest::{Guest, Payload, Start},
    lock::FileLock,
    machine::{Accel, MemoryFile, Shape},
    monitor::Trouble,
    tools::Qemu,
};

/// What init prints when it was only asked whether it runs.
const ANSWER: &str = "plugpull-init: probe answered";
/// A working KVM boots the probe in about a second.
const KVM_DEADLINE: Duration = Duration::from_secs(12);
/// A translated probe takes about two seconds on the reference host.
const TCG_DEADLINE: Duration = Duration::from_secs(120);
/// How long another process may take to probe.
const LOCK_DEADLINE: Duration = Duration::from_secs(300);
/// The probe's time under TCG on the host that deadlines were chosen on.
const REFERENCE: Duration = Duration::from_millis(2500);

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// KVM where it boots a kernel, TCG elsewhere.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// TCG, without asking for KVM.
    Tcg,
}

/// The accelerator to use, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    kvm: bool,
    /// One sentence for a person.
    pub reason: String,
    /// Milliseconds from exec until init ran.
    pub probe_ms: u64,
    boot_id: String,
}

impl Verdict {
    /// The accelerator.
    pub fn accel(&self) -> Accel {
        if self.kvm { Accel::Kvm } else { Accel::Tcg }
    }

    /// How many times slower than the reference host; at least 1. Deadlines
    /// are multiplied by it.
    pub fn slowness(&self) -> f64 {
        let probe = Duration::from_millis(self.probe_ms);
        (probe.as_secs_f64() / REFERENCE.as_secs_f64()).clamp(1.0, 20.0)
    }
}

/// Find the accelerator, from the cache where this boot of the host has been
/// probed with this QEMU.
///
/// # Errors
/// When the wish is KVM and KVM does not boot a kernel; when even TCG does not.
pub fn choose(qemu: &Qemu, payload: &Payload, wish: Wish, dir: &Path) -> Result<Verdict> {
    let boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read this boot's id")?;
    let boot_id = boot_id.trim().to_owned();
    let name = match wish {
        Wish::Auto | Wish::Kvm => "auto",
        Wish::Tcg => "tcg",
    };
    let path = dir.join(format!("accelerator-{name}-{}.json", qemu.version));
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let _lock = FileLock::exclusive(&dir.join("accelerator.lock"), LOCK_DEADLINE)?;
    let cached = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Verdict>(&text).ok());
    let verdict = match cached.filter(|cached| cached.boot_id == boot_id) {
        Some(verdict) => verdict,
        None => {
            let verdict = probe(qemu, payload, wish, dir, boot_id)?;
            cache::publish_bytes(&path, &serde_json::to_vec_pretty(&verdict)?)?;
            verdict
        }
    };
    if wish == Wish::Kvm && !verdict.kvm {
        bail!("KVM was asked for, but {}", verdict.reason);
    }
    Ok(verdict)
}

fn probe(
    qemu: &Qemu,
    payload: &Payload,
    wish: Wish,
    dir: &Path,
    boot_id: String,
) -> Result<Verdict> {
    let kvm = match wish {
        Wish::Tcg => Err(String::from("TCG was asked for")),
        Wish::Auto | Wish::Kvm => probe_kvm(qemu, payload, dir),
    };
    match kvm {
        Ok(took) => Ok(Verdict {
            kvm: true,
            reason: format!("KVM booted a kernel in {:.1} s", took.as_secs_f64()),
            probe_ms: u64::try_from(took.as_millis())?,
            boot_id,
        }),
        Err(reason) => {
            let took = boot(qemu, payload, Accel::Tcg, TCG_DEADLINE, dir)
                .context("even without hardware virtualisation no kernel boots here")?;
            Ok(Verdict {
                kvm: false,
                reason,
                probe_ms: u64::try_from(took.as_millis())?,
                boot_id,
            })
        }
    }
}

/// Whether KVM boots a kernel; the error says why it is not used.
fn probe_kvm(qemu: &Qemu, payload: &Payload, dir: &Path) -> Result<Duration, String> {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("/dev/kvm cannot be opened: {error}"));
    }
    boot(qemu, payload, Accel::Kvm, KVM_DEADLINE, dir).map_err(|error| {
        let why = match error.downcast_ref::<Trouble>() {
            Some(Trouble::Hung { phase, after, .. }) => {
                format!(
                    "was still in phase {phase} after {:.0} s",
                    after.as_secs_f64()
                )
            }
            Some(Trouble::Ended { phase, reason, .. }) => {
                let said = fs::read_to_string(dir.join("probe-kvm/qemu.log")).unwrap_or_default();
                let said = said.lines().next().unwrap_or(reason);
                format!("ended in phase {phase}: {said}")
            }
            _ => format!("failed: {error:#}").replace('\n', " "),
        };
        format!("/dev/kvm opens, but a stock kernel on it {why}")
    })
}

fn boot(
    qemu: &Qemu,
    payload: &Payload,
    accel: Accel,
    deadline: Duration,
    dir: &Path,
) -> Result<Duration> {
    let shape = Shape {
        accel,
        cpus: 1,
        memory_mib: 512,
        disks: Vec::new(),
    };
    let mut payload = payload.clone();
    payload.words.push(String::from("plugpull.probe"));
    let logs = dir.join(format!("probe-{accel}"));
    let start = Instant::now();
    let guest = Guest::start(Start {
        qemu,
        shape: &shape,
        media: &[],
        payload: &payload,
        memory: MemoryFile::Anonymous,
        incoming: false,
        phase: Phase::Firmware,
        logs: &logs,
        promises: Arc::new(|_| {}),
    })?;
    guest.console_shows(ANSWER, deadline)?;
    Ok(start.elapsed())
}
