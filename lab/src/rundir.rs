//! `target/plugpull/runs/<id>/`: everything one run leaves behind, and the
//! means to tidy up after a run that was killed.
//!
//! ```text
//! runs/latest -> <id>
//! runs/<id>/lock                     held by xtask for the life of the run
//! runs/<id>/registry                 one line for each thing that must not outlive it
//! runs/<id>/tests/<case>/started     written first
//! runs/<id>/tests/<case>/result.json written last, in one rename
//! runs/<id>/tests/<case>/timeline.json, states.tsv   an exploration, drawn up
//! runs/<id>/tests/<case>/…           artefacts
//! ```
//!
//! A lock goes with the process that held it, however it died, so a run whose
//! lock is free is over.

mod process;
mod sweep;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use plugpull_vm::lock::FileLock;
use serde::{Deserialize, Serialize};

pub use process::ProcessId;
pub use sweep::{Swept, prune, sweep};

use crate::report::{Found, Planned, ScenarioResult, join};

/// The environment variable that tells a test its run directory.
pub const ENV: &str = "PLUGPULL_RUN";

/// An exploration as a picture.
pub(crate) const TIMELINE: &str = "timeline.json";
/// Its states, one a line.
pub(crate) const STATES: &str = "states.tsv";

const REGISTRY: &str = "registry";
const KEPT: &str = "kept";

/// Something that must not outlive its run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "left", rename_all = "kebab-case")]
pub enum Left {
    /// A process: killed, if it is still the same one.
    Process {
        /// Which.
        process: ProcessId,
        /// What it is, for messages.
        what: String,
    },
    /// A UNIX socket: removed, if nobody listens on it.
    Socket {
        /// Its path.
        path: PathBuf,
    },
    /// A mount below the run directory: taken down.
    Mount {
        /// Its mount point.
        path: PathBuf,
    },
    /// A loop device: detached, if the same file is still behind it.
    Loop {
        /// `/dev/loopN`.
        device: PathBuf,
        /// The file behind it.
        backing: PathBuf,
    },
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { process, what } => write!(f, "process {} ({what})", process.pid()),
            Self::Socket { path } => write!(f, "socket {}", path.display()),
            Self::Mount { path } => write!(f, "mount {}", path.display()),
            Self::Loop { device, .. } => write!(f, "loop device {}", device.display()),
        }
    }
}

/// A run's directory. The one who created it holds its lock.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: Option<File>,
}

impl RunDir {
    /// Make the directory of a new run below `root` (`target/plugpull`), hold
    /// its lock, and point `latest` at it.
    ///
    /// # Errors
    /// When the file system refuses; the path is named.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        let runs = root.join("runs");
        let _all = lock_all(&runs)?;
        let run = Self::make(&runs)?;
        let latest = runs.join(format!(".latest-{}", run.id()));
        std::os::unix::fs::symlink(run.id(), &latest)?;
        fs::rename(&latest, runs.join("latest")).context("cannot move the link `latest`")?;
        Ok(run)
    }

    /// As [`RunDir::create`] for something that is no run of tests, so `latest`
    /// stays; to be [removed](RunDir::remove) at its end.
    ///
    /// # Errors
    /// As there.
    pub fn create_aside(root: &Path) -> anyhow::Result<Self> {
        let runs = root.join("runs");
        let _all = lock_all(&runs)?;
        Self::make(&runs)
    }

    /// The lock on all runs must be held: between making a directory and
    /// locking it, a sweep would take it for a dead one.
    fn make(runs: &Path) -> anyhow::Result<Self> {
        let id = run_id(SystemTime::now(), std::process::id());
        let path = (1..100_u32)
            .find_map(|n| {
                let path = runs.join(match n {
                    1 => id.clone(),
                    n => format!("{id}-{n}"),
                });
                match fs::create_dir(&path) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => None,
                    made => Some(made.map(|()| path)),
                }
            })
            .with_context(|| format!("no free name for a run in {}", runs.display()))?
            .with_context(|| format!("cannot make a run directory in {}", runs.display()))?;
        let lock = open_lock(&path.join("lock"))?;
        lock.try_lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        fs::create_dir(path.join("tests"))?;
        Ok(Self {
            path,
            _lock: Some(lock),
        })
    }

    /// Remove it with all that is in it.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }

    /// The directory of a run that somebody else holds: what a test does with
    /// the value of [`ENV`].
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let path = fs::canonicalize(path)
            .with_context(|| format!("there is no run directory {}", path.display()))?;
        Ok(Self { path, _lock: None })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name: the time in UTC and the process.
    pub fn id(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Note something that must not outlive the run. It is on its way to the
    /// file when this returns, whatever happens to this process then.
    ///
    /// # Errors
    /// When the registry cannot be written; the caller then undoes the thing.
    pub fn register(&self, left: &Left) -> anyhow::Result<()> {
        if let Left::Mount { path } = left {
            anyhow::ensure!(
                path.starts_with(&self.path),
                "{} is not below the run directory {}",
                path.display(),
                self.path.display()
            );
        }
        let path = self.path.join(REGISTRY);
        let mut line = serde_json::to_vec(left)?;
        line.push(b'\n');
        // One write in append mode: lines of several tests never mix.
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(&line))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Keep this run's files when old runs are pruned.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn keep(&self) -> io::Result<()> {
        fs::write(self.path.join(KEPT), "")
    }

    /// Begin a test: make its directory, write `started`, and register this
    /// process.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn start_test(&self, name: &str) -> anyhow::Result<TestDir> {
        let path = self.test_path(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let result = path.join("result.json");
        match fs::remove_file(&result) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", result.display()));
            }
            _ => {}
        }
        self.register(&Left::Process {
            process: ProcessId::current()?,
            what: format!("test {name}"),
        })?;
        fs::write(path.join("started"), format!("{}\n", std::process::id()))?;
        Ok(TestDir { path })
    }

    fn test_path(&self, name: &str) -> PathBuf {
        self.path.join("tests").join(file_name(name))
    }

    /// What a test left.
    pub fn found(&self, name: &str) -> Found {
        let dir = self.test_path(name);
        match fs::read(dir.join("result.json")) {
            Ok(bytes) => match serde_json::from_slice::<ScenarioResult>(&bytes) {
                Ok(result) if result.name == name => Found::Result(Box::new(result)),
                Ok(result) => Found::Garbage(format!("it is the result of `{}`", result.name)),
                Err(error) => Found::Garbage(error.to_string()),
            },
            Err(e) if e.kind() == ErrorKind::NotFound => match dir.join("started").exists() {
                true => Found::Started,
                false => Found::Nothing,
            },
            Err(error) => Found::Garbage(error.to_string()),
        }
    }

    /// Every planned case with what became of it.
    pub fn join<'a>(&self, planned: impl IntoIterator<Item = &'a Planned>) -> Vec<ScenarioResult> {
        join(planned, |name| self.found(name))
    }
}

/// The directory of one test.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
}

impl TestDir {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where an artefact of this name belongs.
    pub fn artefact(&self, name: &str) -> PathBuf {
        self.path.join(file_name(name))
    }

    /// Write the result, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written; the test is then Infra.
    pub fn finish(&self, result: &ScenarioResult) -> anyhow::Result<()> {
        let (new, done) = (
            self.path.join(".result.json.new"),
            self.path.join("result.json"),
        );
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(result)?)?;
            fs::rename(&new, &done)
        };
        write().with_context(|| format!("cannot write {}", done.display()))
    }
}

/// The longest file name that is made from a name, in bytes; the limit of
/// ext4, XFS and Btrfs is 255.
const FILE_NAME_MAX: usize = 200;

/// A name as one component of a path: `::` becomes `__`, anything but letters,
/// digits, `-` and `.` becomes `%XX`. Different names stay different.
pub(crate) fn file_name(name: &str) -> String {
    let mut out = String::new();
    for (n, part) in name.split("::").enumerate() {
        if n > 0 {
            out.push_str("__");
        }
        for (n, byte) in part.bytes().enumerate() {
            let plain = byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' && n > 0;
            match plain {
                true => out.push(byte.into()),
                false => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    if out.is_empty() {
        return "%".into();
    }
    if out.len() > FILE_NAME_MAX {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(name.as_bytes());
        let hash: String = hash
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        // ASCII throughout, so any byte is a boundary; `%` and `%.` are never
        // made from a name, so the mark cannot collide.
        out.truncate(FILE_NAME_MAX - hash.len() - 2);
        out.push_str("%.");
        out.push_str(&hash);
    }
    out
}

fn open_lock(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(path);
    file.with_context(|| format!("cannot open the lock {}", path.display()))
}

/// Held while a directory is made, or while dead runs are removed: gigabytes
/// at most.
const ALL_DEADLINE: Duration = Duration::from_secs(300);

fn lock_all(runs: &Path) -> anyhow::Result<FileLock> {
    fs::create_dir_all(runs).with_context(|| format!("cannot make {}", runs.display()))?;
    Ok(FileLock::exclusive(&runs.join(".lock"), ALL_DEADLINE)?)
}

/// `20261121T024010Z-4d2`: sorts by time, and two runs in one second differ.
fn run_id(now: SystemTime, pid: u32) -> String {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z-{pid:x}")
}

/// The date so many days after 1970-01-01 (Howard Hinnant,
/// `chrono-Compatible Low-Level Date Algorithms`, `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::report::{Evidence, Verdict};

    #[test]
    fn ids_sort_by_time() {
        let at = |seconds| run_id(UNIX_EPOCH + Duration::from_secs(seconds), 0x4d2);
        assert_eq!(at(0), "19700101T000000Z-4d2");
        assert_eq!(at(951_782_399), "20000228T235959Z-4d2");
        assert_eq!(at(951_868_799), "20000229T235959Z-4d2");
        assert_eq!(at(4_107_542_400), "21000301T000000Z-4d2");
        assert_eq!(at(1_795_228_810), "20261121T024010Z-4d2");
    }

    #[test]
    fn names_become_one_path_component() {
        assert_eq!(
            file_name("a-b::debian13::ext4::native"),
            "a-b__debian13__ext4__native"
        );
        assert_eq!(file_name("a_b"), "a%5Fb");
        assert_eq!(file_name("../../etc"), "%2E.%2F..%2Fetc");
        assert_eq!(file_name(".."), "%2E.");
        assert_eq!(file_name(""), "%");
        let long = |last: &str| file_name(&format!("{}{last}", "é".repeat(300)));
        assert_eq!(long("a").len(), FILE_NAME_MAX);
        assert_ne!(long("a"), long("b"));
    }

    proptest! {
        #[test]
        fn different_names_stay_different(a in "[a:_.%/-]{0,6}", b in "[a:_.%/-]{0,6}") {
            prop_assert_eq!(a == b, file_name(&a) == file_name(&b));
            prop_assert!(!file_name(&a).contains('/'));
            prop_assert!(!["", ".", ".."].contains(&file_name(&a).as_str()));
        }
    }

    #[test]
    fn a_run_holds_its_lock_and_is_the_latest() {
        let root = tempfile::tempdir().expect("a directory");
        let first = RunDir::create(root.path()).expect("made");
        let second = RunDir::create(root.path()).expect("made");
        let ids: BTreeSet<_> = [first.id(), second.id()].into();
        assert_eq!(ids.len(), 2);
        let latest = fs::read_link(root.path().join("runs/latest")).expect("a link");
        assert_eq!(latest, PathBuf::from(second.id()));
        let lock = open_lock(&second.path().join("lock")).expect("opens");
        assert!(lock.try_lock().is_err(), "held");
        let path = second.path().to_owned();
        drop(second);
        lock.try_lock().expect("free once the run is over");
        assert!(RunDir::open(&path).is_ok() && RunDir::open(&path.join("no")).is_err());
        let aside = RunDir::create_aside(root.path()).expect("made");
        let latest = fs::read_link(root.path().join("runs/latest")).expect("a link");
        assert_eq!(root.path().join("runs").join(latest), path);
        let path = aside.path().to_owned();
        aside.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn a_test_is_nothing_then_started_then_its_result() {
        let root = tempfile::tempdir().expect("a directory");
        let run = RunDir::create(root.path()).expect("made");
        let plan = Planned::malformed("s::i::l::m");
        assert_eq!(run.found(&plan.name), Found::Nothing);
        let test = run.start_test(&plan.name).expect("started");
        assert_eq!(run.found(&plan.name), Found::Started);
        assert_eq!(run.join([&plan])[0].verdict, Verdict::Infra);
        let result = plan.result(Evidence::default());
        test.finish(&result).expect("written");
        assert_eq!(
            run.found(&plan.name),
            Found::Result(Box::new(result.clone()))
        );
        assert_eq!(run.join([&plan])[0].verdict, Verdict::Pass);

        fs::write(test.path().join("result.json"), "{\"name\":").expect("written");
        assert!(matches!(run.found(&plan.name), Found::Garbage(_)));
        let other = ScenarioResult {
            name: "other".into(),
            ..result
        };
        test.finish(&other).expect("written");
        assert!(matches!(run.found(&plan.name), Found::Garbage(_)));
        run.start_test(&plan.name).expect("started again");
        assert_eq!(
            run.found(&plan.name),
            Found::Started,
            "an old result does not count"
        );
    }

    #[test]
    fn a_mount_elsewhere_is_not_ours_to_take_down() {
        let root = tempfile::tempdir().expect("a directory");
        let run = RunDir::create(root.path()).expect("made");
        let path = PathBuf::from("/mnt");
        assert!(run.register(&Left::Mount { path }).is_err());
    }
}
