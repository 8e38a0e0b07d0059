//! A data directory's files: what there is, asked for ahead, hashed.
//!
//! A cluster is a thousand small files, and after a power cut none of them is in memory. Read one
//! after another, each waits for the disk alone; asked for many together first, they wait together.

use std::fs::{self, File, Metadata};
use std::hash::Hasher as _;
use std::io::{ErrorKind, Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::Advice;
use twox_hash::XxHash64;

/// So much is read at once.
const BLOCK: usize = 256 << 10;

/// So many files are open at once; a process may have a thousand.
const OPEN: usize = 256;

/// What `pg_checksums` looks through.
const DATA: &[&str] = &["global", "base"];
/// And this, which holds links to directories elsewhere.
const TABLESPACES: &str = "pg_tblspc";

/// A file of a data directory, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Below the data directory.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Of its path and its bytes.
    pub(super) hash: u64,
}

/// Reads files through one buffer.
pub(super) struct Reader(Vec<u8>);

impl Reader {
    pub(super) fn new() -> Self {
        Self(vec![0; BLOCK])
    }

    /// Show all of a file, block by block.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, mut file: &File, mut show: impl FnMut(&[u8])) -> std::io::Result<u64> {
        let mut bytes = 0;
        loop {
            match file.read(&mut self.0) {
                Ok(0) => return Ok(bytes),
                Ok(read) => {
                    show(&self.0[..read]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Hash a relation's main fork, all segments of it, of which the first is open.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn relation(
        &mut self,
        first: &Path,
        opened: File,
        hasher: &mut XxHash64,
    ) -> anyhow::Result<()> {
        let (mut path, mut file) = (first.to_owned(), opened);
        for segment in 1.. {
            let read = self.read(&file, |bytes| hasher.write(bytes));
            read.with_context(|| format!("read {}", path.display()))?;
            path = segment_of(first, segment);
            file = match File::open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                opened => opened.with_context(|| format!("open {}", path.display()))?,
            };
        }
        Ok(())
    }

    /// Read these files of a data directory, which a user of that number must be able to read too.
    ///
    /// # Errors
    /// When one cannot be read by either.
    pub(super) fn files(
        &mut self,
        dir: &Path,
        paths: &[PathBuf],
        user: u32,
    ) -> anyhow::Result<Vec<DataFile>> {
        let mut all = Vec::new();
        for together in paths.chunks(OPEN) {
            let opened = together.iter().map(|path| ahead(&dir.join(path)));
            let opened: Vec<File> = opened.collect::<anyhow::Result<_>>()?;
            for (path, file) in together.iter().zip(opened) {
                let at = dir.join(path);
                readable(&at, &file.metadata()?, user, 0o400)?;
                let mut hasher = hasher_of(path);
                let read = self.read(&file, |bytes| hasher.write(bytes));
                let bytes = read.with_context(|| format!("read {}", at.display()))?;
                all.push(DataFile {
                    path: path.clone(),
                    bytes,
                    hash: hasher.finish(),
                });
            }
        }
        Ok(all)
    }

    /// Copy a file, which must still be what it was.
    ///
    /// # Errors
    /// When it is not, or one of the two places refuses.
    pub(super) fn copy(&mut self, dir: &Path, file: &DataFile, to: &Path) -> anyhow::Result<()> {
        let at = dir.join(&file.path);
        let (from, mut copy) = (File::open(&at)?, File::create_new(to)?);
        let mut hasher = hasher_of(&file.path);
        let mut written = Ok(());
        self.read(&from, |bytes| {
            hasher.write(bytes);
            if written.is_ok() {
                written = copy.write_all(bytes);
            }
        })?;
        written.with_context(|| format!("write {}", to.display()))?;
        ensure!(hasher.finish() == file.hash, "{} changed", at.display());
        Ok(())
    }
}

/// Files of equal bytes in two places are two files.
fn hasher_of(path: &Path) -> XxHash64 {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(path.as_os_str().as_encoded_bytes());
    hasher.write(&[0]);
    hasher
}

fn segment_of(first: &Path, segment: u32) -> PathBuf {
    let mut path = first.as_os_str().to_owned();
    path.push(format!(".{segment}"));
    path.into()
}

/// Open a file that is read soon: the kernel begins to fetch it. To open it once more for reading
/// would undo that on FUSE, where an open drops what is cached.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn ahead(path: &Path) -> anyhow::Result<File> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    // Advice: what is wrong with the file is told to who reads it.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::WillNeed);
    Ok(file)
}

/// Every file that `pg_checksums` may look at, below the data directory. What it skips among them
/// is its own business.
///
/// # Errors
/// When there is anything but plain files in plain directories of that user, or a directory cannot
/// be read: what that means for `pg_checksums` it must be asked itself.
pub(super) fn list(dir: &Path, user: u32) -> anyhow::Result<Vec<PathBuf>> {
    let tablespaces = dir.join(TABLESPACES);
    let mut inside =
        fs::read_dir(&tablespaces).with_context(|| format!("list {}", tablespaces.display()))?;
    ensure!(inside.next().is_none(), "there are tablespaces");
    let mut files = Vec::new();
    let mut left: Vec<PathBuf> = DATA.iter().map(PathBuf::from).collect();
    while let Some(below) = left.pop() {
        let at = dir.join(&below);
        let found = fs::symlink_metadata(&at)?;
        ensure!(found.is_dir(), "{} is no directory", at.display());
        readable(&at, &found, user, 0o500)?;
        for entry in fs::read_dir(&at).with_context(|| format!("list {}", at.display()))? {
            let entry = entry.with_context(|| format!("list {}", at.display()))?;
            let (path, kind) = (below.join(entry.file_name()), entry.file_type()?);
            match (kind.is_file(), kind.is_dir()) {
                (true, _) => files.push(path),
                (_, true) => left.push(path),
                _ => bail!("{} is neither a file nor a directory", path.display()),
            }
        }
    }
    Ok(files)
}

fn readable(at: &Path, found: &Metadata, user: u32, needed: u32) -> anyhow::Result<()> {
    ensure!(
        found.uid() == user && found.mode() & needed == needed,
        "{} is of user {} with mode {:o}",
        at.display(),
        found.uid(),
        found.mode()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn user() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn cluster() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for below in ["global", "base/1", "base/5", "pg_tblspc", "pg_wal"] {
            fs::create_dir_all(dir.path().join(below)).expect("made");
        }
        for (file, byte) in [("global/pg_control", 1), ("base/1/1255", 2)] {
            fs::write(dir.path().join(file), vec![byte; 300_000]).expect("written");
        }
        fs::write(dir.path().join("base/5/1255"), vec![2; 300_000]).expect("written");
        fs::write(dir.path().join("pg_wal/1"), "nobody's").expect("written");
        dir
    }

    fn read(dir: &Path) -> anyhow::Result<Vec<DataFile>> {
        let mut paths = list(dir, user())?;
        paths.sort();
        Reader::new().files(dir, &paths, user())
    }

    #[test]
    fn a_file_is_known_by_its_place_and_its_bytes() {
        let dir = cluster();
        let before = read(dir.path()).expect("read");
        let paths = before.iter().map(|file| file.path.display().to_string());
        let paths: Vec<_> = paths.collect();
        assert_eq!(paths, ["base/1/1255", "base/5/1255", "global/pg_control"]);
        assert!(before.iter().all(|file| file.bytes == 300_000));
        assert_ne!(before[0].hash, before[1].hash);
        assert_eq!(read(dir.path()).expect("read"), before);
        let victim = dir.path().join("base/5/1255");
        let mut bytes = fs::read(&victim).expect("read");
        bytes[299_999] ^= 1;
        fs::write(&victim, bytes).expect("written");
        let after = read(dir.path()).expect("read");
        assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
        assert_ne!(after[1].hash, before[1].hash);
    }

    #[test]
    fn a_copy_is_of_what_was_read() {
        let dir = cluster();
        let file = read(dir.path()).expect("read").remove(0);
        let to = dir.path().join("copy");
        let copied = Reader::new().copy(dir.path(), &file, &to);
        copied.expect("copied");
        assert_eq!(fs::read(&to).expect("read"), vec![2; 300_000]);
        fs::write(dir.path().join(&file.path), vec![3; 300_000]).expect("written");
        let other = Reader::new().copy(dir.path(), &file, &dir.path().join("other"));
        assert!(other.expect_err("changed").to_string().contains("changed"));
    }

    #[test]
    fn what_is_unusual_is_left_to_pg_checksums() {
        let unusual = |spoil: &dyn Fn(&Path)| {
            let dir = cluster();
            spoil(dir.path());
            read(dir.path()).expect_err("unusual").to_string()
        };
        let said = unusual(&|dir| symlink("1255", dir.join("base/1/1256")).expect("linked"));
        assert!(said.contains("neither a file nor a directory"), "{said}");
        let said = unusual(&|dir| symlink("/", dir.join("pg_tblspc/16400")).expect("linked"));
        assert!(said.contains("tablespaces"), "{said}");
        let said = unusual(&|dir| fs::remove_dir(dir.join("pg_tblspc")).expect("removed"));
        assert!(said.contains("pg_tblspc"), "{said}");
        let mode = |path: PathBuf, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
        };
        let said = unusual(&|dir| mode(dir.join("base/1/1255"), 0o200));
        assert!(said.contains("base/1/1255"), "{said}");
        let said = unusual(&|dir| mode(dir.join("base/5"), 0o300));
        assert!(said.contains("base/5"), "{said}");
        let dir = cluster();
        assert!(list(dir.path(), user() + 1).is_err());
    }

    #[test]
    fn every_segment_counts_and_a_missing_relation_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = dir.path().join("16384");
        let hashed = || {
            let mut hasher = XxHash64::with_seed(0);
            let file = ahead(&first)?;
            let read = Reader::new().relation(&first, file, &mut hasher);
            read.map(|()| hasher.finish())
        };
        assert!(hashed().is_err());
        fs::write(&first, [1; 600_000]).expect("written");
        let one = hashed().expect("hashed");
        assert_eq!(hashed().expect("again"), one);
        fs::write(dir.path().join("16384.1"), [1; 5]).expect("written");
        let two = hashed().expect("hashed");
        assert_ne!(one, two);
        fs::write(dir.path().join("16384.1"), [2; 5]).expect("written");
        assert_ne!(hashed().expect("hashed"), two);
    }
}
