//! Builds one image: packages out of the archive, into a tree, into a root disk
//! and a kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::apt::{self, Absent, AbsentError, Mirrors, Package, Progress};
use super::ext4::{FileSystem, Usage};
use super::lockfile::Lock;
use super::recipe::Recipe;
use super::{modules, tree};
use crate::cache::{ContentHash, KeyHasher, publish_bytes};
use crate::host;

/// What to raise when the same recipe and packages give another image.
pub(super) const BUILDER_VERSION: &str = "3";
/// Packages, tree and image lie side by side for a while.
pub(super) const SPACE_NEEDED: u64 = 3 << 30;
const VERSION_DEADLINE: Duration = Duration::from_secs(30);

/// What is told while an image is built, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum BuildEvent {
    /// Packages are installed on the host for it.
    Host(host::HostEvent),
    /// The lock cannot be kept to, and why; the packages will be others.
    /// To be said loudly.
    LockStale(StaleLock),
    /// Versions are being chosen.
    Resolving,
    /// Packages are being fetched.
    Downloading {
        /// Bytes.
        done: u64,
        /// Bytes.
        total: u64,
    },
    /// Packages are being unpacked.
    Extracting,
    /// What is not needed is being removed, what is missing added.
    Trimming,
    /// The root disk is being made.
    MakingFs,
    /// The image is there.
    Done {
        /// How long it took.
        took: Duration,
    },
}

/// Why a lock could not be kept to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StaleLock {
    /// There is none yet.
    Missing,
    /// The recipe asks for other packages than those it was made for.
    OtherRecipe,
    /// The archive no longer has these.
    Gone(Vec<Absent>),
}

impl std::fmt::Display for StaleLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StaleLock::Missing => f.write_str("there is no lock"),
            StaleLock::OtherRecipe => {
                f.write_str("the lock was made for other packages than the recipe asks for")
            }
            StaleLock::Gone(absent) => {
                let shown: Vec<String> = absent.iter().take(3).map(Absent::to_string).collect();
                write!(f, "the archive has {}", shown.join(", and "))?;
                match absent.len().saturating_sub(shown.len()) {
                    0 => Ok(()),
                    more => write!(f, ", and {more} more are gone"),
                }
            }
        }
    }
}

/// What an image is made of, kept beside it and told in reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The image's name.
    pub name: String,
    /// The kernel's release, as `uname -r` tells it.
    pub kernel_release: String,
    /// The hash of all names, versions and hashes of packages.
    pub packages_hash: ContentHash,
    /// Why other packages than the lock's went in; absent when they did not.
    pub lock_not_kept: Option<String>,
    /// The host's apt settings that loosened the check of the archive's age.
    pub loosened_checks: Vec<String>,
    /// The versions of the programs that built it.
    pub built_with: Vec<String>,
    /// The directory of PostgreSQL's server programs.
    pub postgres_bin: String,
    /// Modules in the order to load them from the initramfs, as paths below
    /// `/lib/modules/RELEASE`.
    pub modules_early: Vec<String>,
    /// Those to load from the root disk afterwards.
    pub modules_late: Vec<String>,
    /// Everything that went in.
    pub packages: Vec<Package>,
}

/// Packages unpacked, and how they came to be these.
pub(super) struct Unpacked {
    /// What went in.
    pub packages: Vec<Package>,
    /// Why they are not the lock's.
    pub stale: Option<StaleLock>,
    loosened_checks: Vec<String>,
}

/// Unpacks a recipe's packages into `dir`: those of `lock` where that is
/// possible, otherwise what the archive has today.
///
/// # Errors
/// When the archive cannot give a package that the recipe names, gives other
/// bytes than the lock pins, or cannot be reached.
pub(super) fn unpack(
    recipe: &Recipe,
    lock: Option<&Lock>,
    dir: &Path,
    tell: &dyn Fn(BuildEvent),
) -> Result<Unpacked> {
    let mirrors = Mirrors::of_host()?;
    let tell_progress = |progress| {
        tell(match progress {
            Progress::Resolving => BuildEvent::Resolving,
            Progress::Downloading { done, total } => BuildEvent::Downloading { done, total },
            Progress::Extracting => BuildEvent::Extracting,
        });
    };
    let extract = |packages: &[String]| {
        let request = apt::Request {
            suites: &recipe.suites,
            components: &recipe.components,
            packages,
            source: None,
        };
        apt::extract(&mirrors, request, dir, &tell_progress)
    };
    let loosened_checks = mirrors.loosened_checks();
    let stale = match lock {
        None => StaleLock::Missing,
        Some(lock) if lock.recipe != recipe.packages_key() => StaleLock::OtherRecipe,
        Some(lock) => match extract(&[lock.requests(), recipe.extra.clone()].concat()) {
            Ok(packages) => {
                lock.verify(&packages)?;
                return Ok(Unpacked {
                    packages,
                    stale: None,
                    loosened_checks,
                });
            }
            Err(error) => {
                let gone = error.downcast::<AbsentError>()?;
                fs::remove_dir_all(dir)
                    .with_context(|| format!("cannot remove {}", dir.display()))?;
                StaleLock::Gone(gone.absent)
            }
        },
    };
    tracing::warn!(image = %recipe.name, "{stale}: resolving anew");
    tell(BuildEvent::LockStale(stale.clone()));
    let wanted = [&recipe.packages[..], &recipe.extra].concat();
    let packages = extract(&wanted).with_context(|| format!("image {}", recipe.name))?;
    if let Some(lock) = lock {
        lock.verify(&packages)?;
    }
    Ok(Unpacked {
        packages,
        stale: Some(stale),
        loosened_checks,
    })
}

/// Builds the image into the empty directory `dir`.
///
/// # Errors
/// As [`unpack`]; and when a program fails or the disk is full.
pub(super) fn build(
    recipe: &Recipe,
    lock: Option<&Lock>,
    dir: &Path,
    tell: &dyn Fn(BuildEvent),
) -> Result<()> {
    let started = Instant::now();
    let step =
        |name: &str| tracing::info!(image = %recipe.name, elapsed = ?started.elapsed(), "{name}");
    let root = dir.join("tree");
    let unpacked = unpack(recipe, lock, &root, tell)?;
    step("unpacked");
    tell(BuildEvent::Trimming);
    let release = tree::kernel_release(&root)?;
    tree::take_kernel(&root, &release, &dir.join("vmlinuz"))?;
    tree::trim(&root)?;
    tree::complete(&root)?;
    step("trimmed");
    let index = modules::prepare(&root, &release)?;
    let mut loaded = BTreeSet::new();
    let wrong = || {
        format!(
            "`modules` of {} does not fit its kernel {release}",
            recipe.file.display()
        )
    };
    let modules_early = index
        .load_order(&recipe.modules.early, &mut loaded)
        .with_context(wrong)?;
    let modules_late = index
        .load_order(&recipe.modules.late, &mut loaded)
        .with_context(wrong)?;
    index
        .load_order(&recipe.modules.kept, &mut loaded)
        .with_context(wrong)?;
    keep_early_modules(
        &root.join("usr/lib/modules").join(&release),
        &modules_early,
        &dir.join("modules"),
    )?;
    step("modules ready");
    let manifest = Manifest {
        name: recipe.name.to_string(),
        packages_hash: packages_hash(&unpacked.packages),
        lock_not_kept: unpacked.stale.as_ref().map(ToString::to_string),
        loosened_checks: unpacked.loosened_checks,
        built_with: built_with()?,
        postgres_bin: recipe.postgres_bin.clone(),
        modules_early,
        modules_late,
        packages: unpacked.packages,
        kernel_release: release,
    };
    let postgres = root
        .join(manifest.postgres_bin.trim_start_matches('/'))
        .join("postgres");
    anyhow::ensure!(
        postgres.exists(),
        "`postgres.bin` of {} has no postgres in it",
        recipe.file.display()
    );
    tell(BuildEvent::MakingFs);
    let usage = Usage::of(&root).with_context(|| format!("cannot add up {}", root.display()))?;
    FileSystem {
        tree: &root,
        label: "plugpull-root",
        size: usage.file_system_size(recipe.headroom),
        seed: &manifest.packages_hash,
    }
    .make(&dir.join("root.img"))?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    publish_bytes(
        &dir.join("manifest.json"),
        &serde_json::to_vec_pretty(&manifest)?,
    )?;
    step("built");
    Ok(())
}

/// Copies what the initramfs is made of out of the tree.
fn keep_early_modules(from: &Path, modules: &[String], to: &Path) -> Result<()> {
    for path in modules {
        let to = to.join(path);
        fs::create_dir_all(to.parent().unwrap_or(&to))?;
        fs::copy(from.join(path), &to).with_context(|| format!("cannot copy the module {path}"))?;
    }
    fs::create_dir_all(to)?;
    Ok(())
}

/// One hash of everything that went in.
pub(super) fn packages_hash(packages: &[Package]) -> ContentHash {
    let key = KeyHasher::new("packages-used");
    let key = packages.iter().fold(
        key,
        |key,
         Package {
             name,
             version,
             sha256,
         }| {
            key.field("name", name)
                .field("version", version)
                .field("sha256", sha256.as_str())
        },
    );
    key.finish()
}

fn built_with() -> Result<Vec<String>> {
    let mmdebstrap = host::command("mmdebstrap")
        .arg("--version")
        .run(VERSION_DEADLINE)?
        .stdout_text();
    // mke2fs(8) tells its version on standard error.
    let mke2fs = host::command("mke2fs")
        .arg("-V")
        .run(VERSION_DEADLINE)?
        .stderr_text();
    let first = |text: &str| text.lines().next().unwrap_or_default().trim().to_owned();
    Ok(vec![
        first(&mmdebstrap),
        first(&mke2fs),
        format!("plugpull image builder {BUILDER_VERSION}"),
    ])
}
