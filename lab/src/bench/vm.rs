//! How fast guests come up: cold, saved, cloned.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use plugpull_disk::{ByteCount, Disk, View};
use plugpull_vm::{
    lock::FileLock,
    machine::Medium,
    template::{Plan, Template},
};

use super::{
    DATA_DISK, Stage,
    figures::{Figure, Group, Setting, Sheet, Unit},
};
use crate::scenario::ImageName;

/// The goal for a cold boot, in seconds.
const COLD_S: f64 = 6.0;
/// The goal for a clone, in seconds.
const CLONE_S: f64 = 0.5;
/// Other processes boot one guest at a time.
const BOOT_LOCK_DEADLINE: Duration = Duration::from_secs(600);

/// Cold boots, saves and clones of each image.
///
/// # Errors
/// When a guest does not come up.
pub fn vm(stage: Stage<'_>, images: &[ImageName], rounds: u32) -> Result<Sheet> {
    let notes = [
        "cold: exec of QEMU to the agent's first answer; one boot at a time",
        "save: devices' state written, QEMU ended, template published",
        "clone: sockets made and QEMU executed to the first answer, with a recording disk on NBD; \
         the template is in the page cache",
    ];
    let setting = Setting::of(stage.bed)?;
    let mut sheet = Sheet::new("vm", setting, notes.map(str::to_owned).into());
    let _slot = stage.bed.slot()?;
    for image in images {
        sheet.groups.push(one(stage, image, rounds)?);
    }
    Ok(sheet)
}

fn one(stage: Stage<'_>, image: &ImageName, rounds: u32) -> Result<Group> {
    let (mut boots, mut saves, mut clones) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for round in 1..=rounds {
        // The template of the round before goes here, not two at a time.
        drop(last.take());
        let (template, boot, save) = cold(stage, image)?;
        stage.tell(format!(
            "{image}, boot {round} of {rounds}: {boot:.2} s, saved in {save:.2} s"
        ));
        boots.push(boot);
        saves.push(save);
        last = Some(template);
    }
    if let Some((_dir, template)) = &last {
        for round in 1..=rounds {
            let took = clone(stage, image, template)?;
            stage.tell(format!("{image}, clone {round} of {rounds}: {took:.2} s"));
            clones.push(took);
        }
    }
    let seconds = |name, samples: &[f64]| Figure::sampled(name, Unit::Seconds, samples);
    let figures = [
        seconds("cold boot to agent ready", &boots).map(|figure| figure.at_most(COLD_S)),
        seconds("save", &saves),
        seconds("clone to first answer", &clones).map(|figure| figure.at_most(CLONE_S)),
    ];
    let kernel = &stage.bed.image(image)?.kernel;
    Ok(Group {
        title: format!("{image}, kernel {kernel}"),
        figures: figures.into_iter().flatten().collect(),
    })
}

/// A template that was never there before, in a directory of its own; seconds
/// of boot and save.
fn cold(stage: Stage<'_>, image: &ImageName) -> Result<((tempfile::TempDir, Template), f64, f64)> {
    let dir = tempfile::tempdir_in(stage.dir).context("make a directory for templates")?;
    let (template, took) = stage.bed.with_plan(image, DATA_DISK, |plan| {
        // Held here, so that waiting for other boots is not measured.
        let _boot = FileLock::exclusive(plan.boot_lock, BOOT_LOCK_DEADLINE)?;
        let own_lock = dir.path().join("boot.lock");
        let plan = Plan {
            templates: dir.path(),
            boot_lock: &own_lock,
            ..*plan
        };
        let start = Instant::now();
        let template = Template::ensure(&plan)?;
        Ok((template, start.elapsed()))
    })?;
    let boot = template.boot_ms() as f64 / 1000.0;
    Ok(((dir, template), boot, took.as_secs_f64() - boot))
}

/// Seconds from the start of a clone to its first answer.
fn clone(stage: Stage<'_>, image: &ImageName, template: &Template) -> Result<f64> {
    let bed = stage.bed;
    let logs = tempfile::tempdir_in(stage.dir).context("make a directory for a clone")?;
    let disk = empty_disk(&logs.path().join("data.disklog"), DATA_DISK.size.0, bed)?;
    let (client, server) = UnixStream::pair().context("make the disk's socket pair")?;
    let server = disk.serve_stream(server)?;
    let media = [
        Medium::File(bed.image(image)?.root.clone()),
        Medium::File(bed.setup().payload.clone()),
        Medium::Nbd(client.as_fd()),
    ];
    let start = Instant::now();
    let guest = template.clone_guest(
        &bed.setup().qemu,
        &media,
        logs.path(),
        Arc::new(|_| {}),
        bed.slowness(),
    )?;
    let took = start.elapsed();
    guest.pull_the_plug()?;
    drop(server);
    Ok(took.as_secs_f64())
}

/// A recording disk of zeros.
pub(super) fn empty_disk(log: &Path, bytes: u64, bed: &crate::testbed::Testbed) -> Result<Disk> {
    let config = bed.disk_config(DATA_DISK, true, bed.setup().seed);
    Disk::create(View::zeros(ByteCount(bytes))?, log, config)
}
