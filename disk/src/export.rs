//! Writes a view out as a sparse raw image.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::view::View;

/// Zeros are skipped in pieces of this size, the block size of the usual host filesystems.
const HOLE_BYTES: usize = 4096;
static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

impl View {
    /// Writes the content as a sparse raw file; blocks of zeros become holes.
    ///
    /// The file appears under its name only when it is whole: it is written beside its place,
    /// synced and renamed.
    ///
    /// # Errors
    /// The file cannot be written, or a file below the view cannot be read. Nothing is left behind.
    pub fn export_sparse(&self, path: &Path) -> Result<()> {
        let draft = Draft::beside(path)?;
        self.write_sparse(&draft.file)
            .with_context(|| format!("write {}", draft.path.display()))?;
        draft.publish(path)
    }

    fn write_sparse(&self, file: &File) -> Result<()> {
        file.set_len(self.size().0)?;
        self.for_each_run(|at, data| Ok(file.write_all_at(data, at)?))
    }

    /// Hands over every run of blocks of 4 KiB that are not all zeros, with the byte at which it
    /// begins, in order. Long runs come in pieces.
    ///
    /// # Errors
    /// Those of `each`, or a file below the view cannot be read.
    pub fn for_each_run(&self, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; View::EXPORT_STEP as usize];
        let mut at = 0;
        while at < self.size().0 {
            let end = (at + View::EXPORT_STEP).min(self.size().0);
            if !self.surely_zeros(at, end) {
                let piece = &mut buffer[..(end - at) as usize];
                self.read_at(at, piece)?;
                runs_of(at, piece, &mut each)?;
            }
            at = end;
        }
        Ok(())
    }
}

/// The runs of blocks in `piece` that are not all zeros.
fn runs_of(at: u64, piece: &[u8], each: &mut impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut run: Option<usize> = None;
    let mut position = 0;
    for block in piece.chunks(HOLE_BYTES) {
        // A comparison of slices is one memcmp, whatever the optimisation level.
        let zeros = *block == ZEROS[..block.len()];
        match (zeros, run) {
            (true, Some(start)) => {
                each(at + start as u64, &piece[start..position])?;
                run = None;
            }
            (false, None) => run = Some(position),
            _ => {}
        }
        position += block.len();
    }
    match run {
        Some(start) => each(at + start as u64, &piece[start..]),
        None => Ok(()),
    }
}

/// A file under a temporary name, removed unless it is published.
pub(crate) struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    /// A new file for what is to stand at `path`.
    pub(crate) fn beside(path: &Path) -> Result<Draft> {
        let name = path
            .file_name()
            .with_context(|| format!("{} names no file", path.display()))?;
        for attempt in 0..64 {
            let mut draft_name = name.to_owned();
            draft_name.push(format!(".draft-{}-{attempt}", std::process::id()));
            let draft = path.with_file_name(draft_name);
            match OpenOptions::new().write(true).create_new(true).open(&draft) {
                Ok(file) => return Ok(Draft { path: draft, file }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("create {}", draft.display()));
                }
            }
        }
        anyhow::bail!("no free temporary name beside {}", path.display())
    }

    /// The file to write to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Syncs it and gives it its name.
    pub(crate) fn publish(mut self, path: &Path) -> Result<()> {
        self.file
            .sync_all()
            .with_context(|| format!("sync {}", self.path.display()))?;
        fs::rename(&self.path, path)
            .with_context(|| format!("rename {} to {}", self.path.display(), path.display()))?;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Best effort: the error that brought us here is the one worth reporting.
            let _ = fs::remove_file(&self.path);
        }
    }
}
