//! The binaries that enter guests, built from this workspace.
//!
//! They are linked statically, so that each runs in every image, into a target
//! directory of their own: the flags must not touch host builds.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use plugpull_vm::{
    cache::{self, ContentHash, Home},
    lock::FileLock,
    process::Cmd,
};
use serde::{Deserialize, Serialize};

/// A cold build of everything takes about two minutes on two cores.
const BUILD_DEADLINE: Duration = Duration::from_secs(1800);
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A static binary and the hash of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// Of its content.
    pub hash: ContentHash,
}

/// What a run sends into its guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    /// Init, agent and workloads.
    pub guest: Binary,
    /// The filesystem.
    pub fs: Binary,
    /// The filesystem with its deliberate faults compiled in.
    pub fs_mutants: Binary,
    /// What compares a mount with a plain directory.
    pub conformance: Binary,
    /// The fsx program, which that starts.
    pub fsx: Binary,
    /// The built-in workloads that are programs of their own.
    pub stores: Binary,
}

/// Build them all; `on_line` gets cargo's own progress.
///
/// # Errors
/// When a build fails; the message carries the compiler's.
pub fn build(home: &Home, on_line: &mut dyn FnMut(&str)) -> Result<Artifacts> {
    Ok(Artifacts {
        guest: one(home, "plugpull-guest", "plugpull-guest", &[], on_line)?,
        fs: one(home, "plugpull-fs", "plugpull-fs", &[], on_line)?,
        fs_mutants: one(
            home,
            "plugpull-fs",
            "plugpull-fs-mutants",
            &["--features", "mutants"],
            on_line,
        )?,
        conformance: one(
            home,
            "plugpull-conformance",
            "plugpull-conformance",
            &[],
            on_line,
        )?,
        fsx: fsx(home, on_line)?,
        stores: one(home, "plugpull-stores", "plugpull-stores", &[], on_line)?,
    })
}

/// The crate of the fsx program; `conformance/src/fsx.rs` says why it is
/// installed and not linked.
const FSX: &str = "fsx@0.3.2";

/// Where fsx is once the artifacts of a run are built.
#[must_use]
pub fn fsx_program(home: &Home) -> PathBuf {
    home.cache.join("tools").join(FSX).join("bin/fsx")
}

/// Install fsx into the cache, once.
fn fsx(home: &Home, on_line: &mut dyn FnMut(&str)) -> Result<Binary> {
    let tools = home.cache.join("tools");
    let root = tools.join(FSX);
    std::fs::create_dir_all(&tools).with_context(|| format!("make {}", tools.display()))?;
    let _one_at_a_time = FileLock::exclusive(&tools.join("install.lock"), BUILD_DEADLINE)?;
    if !root.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        cache::publish_dir(&root, |beside| {
            Cmd::new(&cargo)
                .args(["install", "--locked", FSX, "--target", TARGET])
                .args(["--config", &static_linking()])
                .arg("--root")
                .arg(beside)
                .run_with(BUILD_DEADLINE, on_line)
                .with_context(|| format!("install the program {FSX} for guests"))?;
            Ok(())
        })?;
    }
    publish(&fsx_program(home), &home.cache.join("binaries"), "fsx")
}

fn static_linking() -> String {
    format!("target.{TARGET}.rustflags=[\"-C\",\"target-feature=+crt-static\"]")
}

fn one(
    home: &Home,
    package: &str,
    name: &str,
    flags: &[&str],
    on_line: &mut dyn FnMut(&str),
) -> Result<Binary> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target_dir = home.root.join("target/static");
    Cmd::new(cargo)
        .args([
            "build",
            "--locked",
            "--profile",
            "static",
            "--package",
            package,
            "--target",
            TARGET,
        ])
        .args(["--config", &static_linking()])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(flags)
        .dir(&home.root)
        .run_with(BUILD_DEADLINE, on_line)
        .with_context(|| format!("build the guest's {name}"))?;
    // Two variants of one package share a name in the target directory.
    publish(
        &target_dir.join(TARGET).join("static").join(package),
        &home.cache.join("binaries"),
        name,
    )
}

fn publish(built: &Path, dir: &Path, name: &str) -> Result<Binary> {
    let hash = ContentHash::of_file(built)?;
    let path = dir.join(hash.short()).join(name);
    if !path.exists() {
        cache::publish_file(&path, |file| {
            let mut built =
                std::fs::File::open(built).with_context(|| format!("open {}", built.display()))?;
            std::io::copy(&mut built, file)?;
            Ok(file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?)
        })?;
    }
    Ok(Binary { path, hash })
}
