//! Where things lie, how they get there whole, and what names them.
//!
//! All state is under `target/plugpull/` of the workspace. Whatever is cached
//! is named by a hash of its contents' causes, written beside its place,
//! flushed, and renamed into it: a reader sees all of it or nothing, also after
//! a SIGKILL or a power cut of the host. What a killed writer left beside is
//! removed by the next one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::lock::FileLock;

/// Moves the cache, so that several clones share one.
const CACHE_VARIABLE: &str = "PLUGPULL_CACHE";
/// Moves all state: the runs, and the cache unless that is moved elsewhere.
const STATE_VARIABLE: &str = "PLUGPULL_STATE";
/// Begins the name of everything that is not whole yet.
const UNFINISHED: &str = ".unfinished-";
/// Making and sweeping unfinished directories takes milliseconds.
const SWEEP_DEADLINE: Duration = Duration::from_secs(60);

/// The directories of one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The workspace's root.
    pub root: PathBuf,
    /// `target/plugpull`, or `$PLUGPULL_STATE`.
    pub state: PathBuf,
    /// What can be made again: `$PLUGPULL_CACHE`, or `cache` in the state.
    pub cache: PathBuf,
    /// One directory per run: `runs` in the state.
    pub runs: PathBuf,
    /// Programs of our own, such as QEMU: `tools` in the cache.
    pub tools: PathBuf,
    /// Image recipes and their locks: `vm-images` in the root.
    pub recipes: PathBuf,
}

impl Home {
    /// Finds the workspace above `$CARGO_MANIFEST_DIR` (which cargo and nextest
    /// set) or above the current directory.
    ///
    /// # Errors
    /// When there is no workspace above.
    pub fn find() -> Result<Home> {
        let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::current_dir().context("no current directory")?,
        };
        let variable = |name| std::env::var_os(name).filter(|path| !path.is_empty());
        Home::above(
            &start,
            variable(STATE_VARIABLE).as_deref(),
            variable(CACHE_VARIABLE).as_deref(),
        )
    }

    /// As [`Home::find`], from `start`; `state` and `cache` are the values of
    /// `$PLUGPULL_STATE` and `$PLUGPULL_CACHE`, relative to the root.
    ///
    /// # Errors
    /// When there is no workspace above `start`.
    pub fn above(start: &Path, state: Option<&OsStr>, cache: Option<&OsStr>) -> Result<Home> {
        let Some(root) = start.ancestors().find(|dir| is_workspace(dir)) else {
            bail!("no Cargo workspace in or above {}", start.display());
        };
        let state = root.join(state.unwrap_or("target/plugpull".as_ref()));
        let cache = match cache {
            Some(path) => root.join(path),
            None => state.join("cache"),
        };
        Ok(Home {
            root: root.to_owned(),
            runs: state.join("runs"),
            tools: cache.join("tools"),
            recipes: root.join("vm-images"),
            cache,
            state,
        })
    }
}

fn is_workspace(dir: &Path) -> bool {
    let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
    manifest.lines().any(|line| line.trim() == "[workspace]")
}

/// A SHA-256 in lower-case hexadecimal.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct ContentHash(String);

impl ContentHash {
    /// The hash of these bytes.
    pub fn of(bytes: impl AsRef<[u8]>) -> ContentHash {
        ContentHash::from_digest(&Sha256::digest(bytes.as_ref()))
    }

    /// The hash of a file's content.
    ///
    /// # Errors
    /// When the file cannot be read; the message names it.
    pub fn of_file(path: &Path) -> Result<ContentHash> {
        let read = || -> io::Result<ContentHash> {
            let mut file = File::open(path)?;
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(ContentHash::from_digest(&hasher.finalize())),
                    count => hasher.update(&buffer[..count]),
                }
            }
        };
        read().with_context(|| format!("cannot hash {}", path.display()))
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 16 digits: enough to name a cached thing.
    pub fn short(&self) -> &str {
        self.0.get(..16).unwrap_or(&self.0)
    }

    fn from_digest(digest: &[u8]) -> ContentHash {
        ContentHash(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl std::fmt::Display for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes named fields into one key. Lengths go in too, so that no two lists of
/// fields are alike when their bytes run together.
#[derive(Debug, Clone)]
pub struct KeyHasher(Sha256);

impl KeyHasher {
    /// Begins a key; `kind` keeps keys of different things apart.
    pub fn new(kind: &str) -> KeyHasher {
        KeyHasher(Sha256::new()).field("kind", kind)
    }

    /// Adds one field.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl AsRef<[u8]>) -> KeyHasher {
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key.
    pub fn finish(self) -> ContentHash {
        ContentHash::from_digest(&self.0.finalize())
    }
}

/// Puts a file into its place whole: `fill` writes it beside, it is flushed and
/// renamed over whatever is there.
///
/// # Errors
/// When it cannot be written or `fill` fails; then `dest` is as it was.
pub fn publish_file(dest: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let parent = parent_of(dest)?;
    let name = || format!("cannot write {}", dest.display());
    fs::create_dir_all(parent).with_context(name)?;
    let mut beside = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(parent)
        .with_context(name)?;
    // Before `fill`, which may want others.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    beside.as_file().set_permissions(mode).with_context(name)?;
    fill(beside.as_file_mut()).with_context(name)?;
    beside.as_file().sync_all().with_context(name)?;
    beside.persist(dest).with_context(name)?;
    sync(parent)
}

/// [`publish_file`] of bytes.
///
/// # Errors
/// As there.
pub fn publish_bytes(dest: &Path, bytes: &[u8]) -> Result<()> {
    publish_file(dest, |file| Ok(file.write_all(bytes)?))
}

/// Puts a directory into its place whole: `fill` gets an empty one beside it,
/// which is flushed and renamed. Where another process was first, its result
/// stays and ours goes: both came from the same key.
///
/// # Errors
/// When it cannot be written or `fill` fails; then nothing is left.
pub fn publish_dir(dest: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = parent_of(dest)?;
    let name = || format!("cannot make {}", dest.display());
    fs::create_dir_all(parent).with_context(name)?;
    let beside = Unfinished::new(parent).with_context(name)?;
    fill(beside.dir.path()).with_context(name)?;
    sync_tree(beside.dir.path()).with_context(name)?;
    match fs::rename(beside.dir.path(), dest) {
        Ok(()) => sync(parent),
        Err(_) if dest.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(name),
    }
}

/// A directory that is being filled, held by a lock on itself so that a sweep
/// can tell it from one whose writer was killed.
struct Unfinished {
    dir: tempfile::TempDir,
    _held: File,
}

impl Unfinished {
    fn new(parent: &Path) -> Result<Unfinished> {
        // Between being made and being locked it looks abandoned, so sweeps and
        // makers take turns.
        let _turn = FileLock::exclusive(&parent.join(".sweep.lock"), SWEEP_DEADLINE)?;
        sweep(parent)?;
        let dir = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(parent)?;
        let held = File::open(dir.path())?;
        flock(&held, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Unfinished { dir, _held: held })
    }
}

/// Removes the unfinished directories in `parent` that nobody holds.
fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        if !unfinished || !entry.file_type()?.is_dir() {
            continue;
        }
        // One that its writer renames or removes meanwhile needs no sweeping.
        let Ok(dir) = File::open(entry.path()) else {
            continue;
        };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            tracing::info!(dir = %entry.path().display(), "removing what a killed process left");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Flushes every file and directory of a tree, children first.
fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            sync(&entry.path())?;
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<()> {
    let flushed = File::open(path).and_then(|file| file.sync_all());
    flushed.with_context(|| format!("cannot flush {}", path.display()))
}

fn parent_of(path: &Path) -> Result<&Path> {
    path.parent()
        .with_context(|| format!("{} has no parent directory", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_the_workspace_above() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("vm/src");
        fs::create_dir_all(&inner).unwrap();
        let error = Home::above(&inner, None, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("no Cargo workspace in or above {}", inner.display())
        );
        fs::write(dir.path().join("Cargo.toml"), "[workspace]\n").unwrap();
        fs::write(
            dir.path().join("vm/Cargo.toml"),
            "[package]\nversion.workspace = true\n",
        )
        .unwrap();
        let home = Home::above(&inner, None, None).unwrap();
        assert_eq!(home.root, dir.path());
        assert_eq!(home.tools, dir.path().join("target/plugpull/cache/tools"));
        let elsewhere = Some(OsStr::new("/elsewhere"));
        let all = Home::above(&inner, elsewhere, None).unwrap();
        assert_eq!(all.runs, Path::new("/elsewhere/runs"));
        assert_eq!(all.tools, Path::new("/elsewhere/cache/tools"));
        let moved = Home::above(&inner, None, elsewhere).unwrap();
        assert_eq!(moved.tools, Path::new("/elsewhere/tools"));
        assert_eq!(moved.runs, home.runs, "runs stay with their clone");
    }

    #[test]
    fn hashes_are_sha256_and_keys_keep_fields_apart() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(ContentHash::of("abc").as_str(), abc);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(ContentHash::of_file(&path).unwrap().as_str(), abc);
        let key = |a: &str, b: &str| KeyHasher::new("test").field("a", a).field("b", b).finish();
        assert_ne!(key("xy", "z"), key("x", "yz"));
        assert_eq!(key("x", "y"), key("x", "y"));
    }

    #[test]
    fn a_failed_fill_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("thing");
        assert!(publish_file(&dest, |_| bail!("no")).is_err());
        assert!(publish_dir(&dest, |_| bail!("no")).is_err());
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [".sweep.lock"]);
    }

    #[test]
    fn the_first_published_directory_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("thing");
        for content in ["first", "second"] {
            publish_dir(&dest, |dir| Ok(fs::write(dir.join("file"), content)?)).unwrap();
        }
        assert_eq!(fs::read_to_string(dest.join("file")).unwrap(), "first");
    }

    #[test]
    fn a_sweep_takes_the_abandoned_and_spares_the_held() {
        let dir = tempfile::tempdir().unwrap();
        let abandoned = dir.path().join(format!("{UNFINISHED}abandoned"));
        fs::create_dir_all(abandoned.join("with/content")).unwrap();
        publish_dir(&dir.path().join("outer"), |held| {
            assert!(!abandoned.exists());
            publish_dir(&dir.path().join("inner"), |_| Ok(()))?;
            assert!(held.exists(), "swept under its writer's feet");
            Ok(())
        })
        .unwrap();
    }
}
