//! Device-mapper tables, through the distribution's own dmsetup.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{devices, process::Spec};

const DEADLINE: Duration = Duration::from_secs(60);

/// Make a device-mapper device with this table, or swap the table of one that
/// exists.
///
/// The swap suspends with `--nolockfs`: freezing the filesystem above would
/// write through the very table that makes writes fail.
pub(crate) fn set_table(name: &str, table: &str, below: &Path) -> Result<()> {
    let table = table
        .replace(
            "{device}",
            below.to_str().context("a device's name is ASCII")?,
        )
        .replace("{sectors}", &devices::sectors(below)?.to_string());
    if devices::node(&plugpull_protocol::Device::Mapper(name.to_owned())).is_ok() {
        dmsetup(&["load", name, "--table", &table])?;
        dmsetup(&["suspend", "--nolockfs", name])?;
        dmsetup(&["resume", name])
    } else {
        dmsetup(&[
            "create",
            name,
            "--noudevsync",
            "--noudevrules",
            "--table",
            &table,
        ])
    }
}

/// Remove a device-mapper device.
pub(crate) fn remove(name: &str) -> Result<()> {
    dmsetup(&["remove", "--noudevsync", "--noudevrules", name])
}

fn dmsetup(args: &[&str]) -> Result<()> {
    let exited = Spec::new(["/sbin/dmsetup"]).args(args).run(DEADLINE)?;
    ensure!(
        exited.success(),
        "dmsetup {args:?} ended with {}: {}",
        exited.code,
        exited.stderr.trim()
    );
    Ok(())
}
