//! Guest images: a kernel, its modules, and a read-only root disk with a
//! distribution's packages.
//!
//! A recipe (`vm-images/NAME.toml`) says what is wanted, the lock beside it
//! which versions exactly. An image is cached under a key made of both; it is
//! built under a lock, beside its place, and renamed into it.

pub mod apt;
mod build;
pub mod ext4;
mod lockfile;
pub mod modules;
mod problem;
mod recipe;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cache::{ContentHash, Home, KeyHasher, publish_dir};
use crate::host;
use crate::lock::FileLock;

pub use build::{BuildEvent, Manifest, StaleLock};
pub use lockfile::{HashMismatch, Lock};
pub use problem::{Problem, Source, nearest};
pub use recipe::{ImageName, Modules, Recipe, UnknownImage, is_package_name, names};

/// A build by another process is waited for this long.
const LOCK_DEADLINE: Duration = Duration::from_secs(3600);

/// A built image. Its files never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: ImageName,
    /// The directory of its files.
    pub dir: PathBuf,
    /// The kernel, bootable by QEMU's `-kernel`.
    pub vmlinuz: PathBuf,
    /// The root disk: ext4, raw, sparse, to be attached read-only.
    pub root_img: PathBuf,
    /// The modules of the initramfs, in their places below
    /// `/lib/modules/RELEASE`.
    pub modules_dir: PathBuf,
    /// What it is made of.
    pub manifest: Manifest,
}

/// What `image list` tells of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What is wanted.
    pub recipe: Recipe,
    /// The lock, if there is one.
    pub lock: Option<Lock>,
    /// The image, if it is built.
    pub built: Option<Image>,
}

/// How a lock changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LockChanges {
    /// Packages with their versions.
    pub added: Vec<(String, String)>,
    /// Packages with their versions.
    pub removed: Vec<(String, String)>,
    /// Packages with their old and new versions.
    pub changed: Vec<(String, String, String)>,
}

impl Image {
    /// The kernel's release.
    pub fn kernel_release(&self) -> &str {
        &self.manifest.kernel_release
    }

    fn load(name: &ImageName, dir: &Path) -> Result<Option<Image>> {
        let path = dir.join("manifest.json");
        if !path.exists() {
            return Ok(None);
        }
        let manifest =
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest = serde_json::from_slice(&manifest)
            .with_context(|| format!("malformed: {}", path.display()))?;
        Ok(Some(Image {
            name: name.clone(),
            dir: dir.to_owned(),
            vmlinuz: dir.join("vmlinuz"),
            root_img: dir.join("root.img"),
            modules_dir: dir.join("modules"),
            manifest,
        }))
    }
}

/// All recipes in the workspace, with their locks and images.
///
/// # Errors
/// When a recipe or lock is malformed.
pub fn list(home: &Home) -> Result<Vec<Listed>> {
    let listed = names(&home.recipes)?.into_iter().map(|name| {
        let recipe = Recipe::load(&home.recipes, name.as_str())?;
        let lock = Lock::load(&recipe)?;
        let built = Image::load(&name, &place(home, &recipe, lock.as_ref()))?;
        Ok(Listed {
            recipe,
            lock,
            built,
        })
    });
    listed.collect()
}

/// The image of a recipe, built if it is not there.
///
/// # Errors
/// When it cannot be built: the message names the package that the archive has
/// not, the program that is missing, or the disk that is full.
pub fn ensure(home: &Home, recipe: &Recipe, tell: &dyn Fn(BuildEvent)) -> Result<Image> {
    let lock = Lock::load(recipe)?;
    let dir = place(home, recipe, lock.as_ref());
    if let Some(image) = Image::load(&recipe.name, &dir)? {
        return Ok(image);
    }
    let _one_at_a_time = build_lock(home, &recipe.name)?;
    if let Some(image) = Image::load(&recipe.name, &dir)? {
        return Ok(image);
    }
    let started = Instant::now();
    prepare_host(home, tell)?;
    publish_dir(&dir, |beside| {
        build::build(recipe, lock.as_ref(), beside, tell)
    })
    .map_err(|error| {
        host::name_full_disk(
            error,
            &home.cache,
            &format!("building the image {}", recipe.name),
        )
    })?;
    tell(BuildEvent::Done {
        took: started.elapsed(),
    });
    let image = Image::load(&recipe.name, &dir)?;
    image.with_context(|| format!("{} is incomplete", dir.display()))
}

/// Writes a new lock from what the archive has today, and returns what changed.
/// The image itself is built by the next [`ensure`].
///
/// # Errors
/// When the archive has not got a package, or the lock cannot be written.
pub fn update(home: &Home, recipe: &Recipe, tell: &dyn Fn(BuildEvent)) -> Result<LockChanges> {
    let _one_at_a_time = build_lock(home, &recipe.name)?;
    let started = Instant::now();
    prepare_host(home, tell)?;
    let scratch = tempfile::tempdir_in(images(home)).context("no place to unpack into")?;
    // That no lock is kept to is the point here.
    let tell_rest = |event| match event {
        BuildEvent::LockStale(_) => {}
        event => tell(event),
    };
    let doing = format!("updating the lock of {}", recipe.name);
    let unpacked = build::unpack(recipe, None, &scratch.path().join("tree"), &tell_rest)
        .map_err(|error| host::name_full_disk(error, &home.cache, &doing))?;
    let lock = Lock {
        recipe: recipe.packages_key(),
        packages: unpacked.packages,
    };
    let before = Lock::load(recipe)?
        .map(|lock| lock.packages)
        .unwrap_or_default();
    lock.save(&recipe.lock_file())?;
    tell(BuildEvent::Done {
        took: started.elapsed(),
    });
    Ok(changes(&before, &lock.packages))
}

/// Removes the built images of one name, with packages added or without, or
/// all; returns how many.
///
/// # Errors
/// When one cannot be removed, or is being built for too long.
pub fn clean(home: &Home, name: Option<&ImageName>) -> Result<usize> {
    let Ok(entries) = fs::read_dir(images(home)) else {
        return Ok(0);
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry?.path();
        let Some(of) = path.file_name().and_then(|file| image_of(file.to_str()?)) else {
            continue;
        };
        if !path.is_dir() || name.is_some_and(|name| !is_of(&of, name)) {
            continue;
        }
        let _not_while_building = build_lock(home, &of)?;
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        removed += 1;
    }
    Ok(removed)
}

fn prepare_host(home: &Home, tell: &dyn Fn(BuildEvent)) -> Result<()> {
    fs::create_dir_all(images(home))
        .with_context(|| format!("cannot make {}", images(home).display()))?;
    host::require_space(&home.cache, build::SPACE_NEEDED)?;
    host::ensure(&host::TO_BUILD_IMAGES, &|event| {
        tell(BuildEvent::Host(event))
    })
}

fn images(home: &Home) -> PathBuf {
    home.cache.join("images")
}

fn build_lock(home: &Home, name: &ImageName) -> Result<FileLock> {
    Ok(FileLock::exclusive(
        &images(home).join(format!("{name}.build.lock")),
        LOCK_DEADLINE,
    )?)
}

/// Where the image of a recipe and lock lies: a key of all that decides it.
fn place(home: &Home, recipe: &Recipe, lock: Option<&Lock>) -> PathBuf {
    let locked = lock.map_or_else(|| "none".to_owned(), Lock::to_text);
    let key: ContentHash = KeyHasher::new("image")
        .field("builder", build::BUILDER_VERSION)
        .field("recipe", recipe.key().as_str())
        .field("lock", locked)
        .finish();
    images(home).join(format!("{}@{}", recipe.name, key.short()))
}

/// Whether a built image is of this recipe, with packages added or without.
fn is_of(built: &ImageName, name: &ImageName) -> bool {
    let added = built.as_str().strip_prefix(name.as_str());
    added.is_some_and(|added| added.is_empty() || added.starts_with(recipe::WITH))
}

fn image_of(file: &str) -> Option<ImageName> {
    ImageName::new(file.split_once('@')?.0).ok()
}

fn changes(before: &[apt::Package], after: &[apt::Package]) -> LockChanges {
    let versions = |packages: &[apt::Package]| -> BTreeMap<String, String> {
        packages
            .iter()
            .map(|package| (package.name.clone(), package.version.clone()))
            .collect()
    };
    let (before, after) = (versions(before), versions(after));
    let mut changes = LockChanges::default();
    for (name, version) in &after {
        match before.get(name) {
            None => changes.added.push((name.clone(), version.clone())),
            Some(old) if old != version => {
                changes
                    .changed
                    .push((name.clone(), old.clone(), version.clone()))
            }
            Some(_) => {}
        }
    }
    let gone = before
        .into_iter()
        .filter(|(name, _)| !after.contains_key(name));
    changes.removed.extend(gone);
    changes
}

#[cfg(test)]
mod tests;
