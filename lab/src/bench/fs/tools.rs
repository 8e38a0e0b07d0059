//! The programs that are measured: ours built, the others found or made.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use plugpull_vm::{
    cache::Home,
    host,
    peers::{self, PassthroughHp},
    process::Cmd,
};

use super::{programs::pgbench, servers::Programs};
use crate::{
    prepare::{during, ensure_host, tell_host},
    progress::{Activity, Progress},
};

/// A cold build takes about two minutes on two cores.
const BUILD_DEADLINE: Duration = Duration::from_secs(1800);

impl Programs {
    /// Builds ours from the workspace in release, installs what the host lacks and
    /// says so.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn find(home: &Home, progress: &dyn Progress) -> Result<Self> {
        ensure_host(&peers::TO_COMPARE, progress)?;
        if pgbench::bin_dir().is_none() {
            ensure_host(&peers::POSTGRES, progress)?;
        }
        let tool = |name: &str| Activity::Tool {
            name: name.to_owned(),
        };
        let passthrough_hp = during(progress, tool("passthrough_hp"), || {
            PassthroughHp::find(home, &|event| tell_host(progress, &event))
        })?;
        let binary = Activity::Binary {
            name: "plugpull-fs, release".to_owned(),
        };
        let ours = || build(home, &["--package", "plugpull-fs"], "plugpull-fs");
        let ours = during(progress, binary, ours)?;
        let binary = Activity::Binary {
            name: "protocol floor, release".to_owned(),
        };
        let floor = ["--package", "plugpull-fuse", "--example", "floor"];
        let floor = during(progress, binary, || build(home, &floor, "examples/floor"))?;
        Ok(Self {
            ours,
            floor,
            passthrough_hp,
            bindfs: host::program("bindfs").context("no bindfs on this host")?,
        })
    }
}

fn build(home: &Home, what: &[&str], path: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = home.root.join("target");
    Cmd::new(cargo)
        .args(["build", "--locked", "--release"])
        .args(what)
        .arg("--target-dir")
        .arg(&target)
        .dir(&home.root)
        .run(BUILD_DEADLINE)
        .with_context(|| format!("build {path}"))?;
    Ok(target.join("release").join(path))
}
