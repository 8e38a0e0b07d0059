//! The lower directory: a new ext4 on a loop device in memory, or a directory of the
//! user's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use plugpull_vm::host;
use rustix::{
    fs::syncfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

/// Room for the files of four threads, a cluster and a tree of a million names.
const IMAGE_BYTES: u64 = 6 << 30;
const DEADLINE: Duration = Duration::from_secs(120);

/// The directory below every server.
#[derive(Debug)]
pub(super) struct Lower {
    /// Where it is.
    pub(super) path: PathBuf,
    /// What it is, for the reader.
    pub(super) about: String,
    /// What was mounted for it, the last first.
    mounts: Vec<PathBuf>,
}

impl Lower {
    /// A new ext4 below `dir`. The image is in memory, so that the host's disk is not
    /// what is measured, and has no name: with the caller's mount namespace everything
    /// goes, also when the caller is killed. mount(8) makes the loop device one that
    /// detaches itself (`LO_FLAGS_AUTOCLEAR`).
    ///
    /// # Errors
    /// When it cannot be made or mounted, as in a container without loop devices; the
    /// cure is a directory of the user's.
    pub(super) fn ext4(dir: &Path) -> Result<Self> {
        let (memory, path) = (dir.join("memory"), dir.join("lower"));
        let mut lower = Self {
            path: path.clone(),
            about: "new ext4 on a loop device, image in memory".to_owned(),
            mounts: Vec::new(),
        };
        for dir in [&memory, &path] {
            fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        mount("tmpfs", &memory, "tmpfs", MountFlags::empty(), c"size=100%")
            .with_context(|| format!("mount a tmpfs on {}", memory.display()))?;
        lower.mounts.insert(0, memory.clone());
        let image = memory.join("ext4");
        File::create(&image)
            .and_then(|file| file.set_len(IMAGE_BYTES))
            .with_context(|| format!("make {}", image.display()))?;
        // Tables written by the kernel afterwards would run beside what is measured.
        host::command("mke2fs")
            .args(["-q", "-t", "ext4", "-N", "2000000"])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&image)
            .run(DEADLINE)?;
        host::command("mount")
            .args(["-o", "loop"])
            .args([&image, &path])
            .run(DEADLINE)
            .context("mount an ext4 on a loop device (or name a directory with --lower)")?;
        lower.mounts.insert(0, path);
        fs::remove_file(&image).with_context(|| format!("remove {}", image.display()))?;
        Ok(lower)
    }

    /// A new directory in one of the user's.
    ///
    /// # Errors
    /// When there is none, or it has something in it.
    pub(super) fn given(dir: &Path) -> Result<Self> {
        let path = dir
            .canonicalize()
            .with_context(|| format!("lower directory {}", dir.display()))?;
        let entries = fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
        anyhow::ensure!(
            entries.count() == 0,
            "{} is not empty, and what is in it would be removed",
            path.display()
        );
        Ok(Self {
            about: format!("{}, given", path.display()),
            path,
            mounts: Vec::new(),
        })
    }

    /// Writes back what lines have left dirty, so that the next one does not pay for it.
    ///
    /// # Errors
    /// The filesystem's.
    pub(super) fn settle(&self) -> Result<()> {
        let dir = File::open(&self.path).context("open the lower directory")?;
        syncfs(&dir).context("sync the lower filesystem")
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        for place in &self.mounts {
            if let Err(error) = unmount(place, UnmountFlags::DETACH) {
                tracing::warn!(%error, place = %place.display(), "still mounted");
            }
        }
    }
}
