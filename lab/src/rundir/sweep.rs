//! Tidying up after runs that were killed, and forgetting old ones.
//!
//! A run is over when its lock is free. Only what its registry names is
//! touched, and each thing only while it is still the thing that was named.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use rustix::mount::{UnmountFlags, unmount};

use super::{KEPT, Left, REGISTRY, lock_all, open_lock, process::Ended};

/// How long a process may take to end after SIGKILL; one in an
/// uninterruptible sleep takes longer, and is left for the next sweep.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What was done about one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The run's id.
    pub run: String,
    /// What was found and removed.
    pub removed: Vec<String>,
    /// What could not be removed; the next sweep tries again.
    pub stayed: Vec<String>,
}

/// Remove what runs that are over left behind. Runs that left nothing are not
/// mentioned.
///
/// # Errors
/// When the directory of runs cannot be read.
pub fn sweep(root: &Path) -> anyhow::Result<Vec<Swept>> {
    let runs = root.join("runs");
    let _all = lock_all(&runs)?;
    let mut swept = Vec::new();
    for run in over(&runs)? {
        if let Some(done) = sweep_run(&run.path) {
            swept.push(done);
        }
    }
    Ok(swept)
}

/// Remove the directories of old runs: all that are over but the last `keep`
/// and those that are marked as kept. A run that still has something to sweep
/// stays.
///
/// # Errors
/// When a directory cannot be read or removed.
pub fn prune(root: &Path, keep: usize) -> anyhow::Result<Vec<String>> {
    let runs = root.join("runs");
    let _all = lock_all(&runs)?;
    let mut old: Vec<_> = over(&runs)?
        .into_iter()
        .filter(|run| !run.path.join(KEPT).exists() && !run.path.join(REGISTRY).exists())
        .collect();
    old.truncate(old.len().saturating_sub(keep));
    let mut pruned = Vec::new();
    for run in old {
        fs::remove_dir_all(&run.path)
            .with_context(|| format!("cannot remove {}", run.path.display()))?;
        pruned.push(name(&run.path));
    }
    Ok(pruned)
}

/// A run that is over, locked so that it stays so.
struct Over {
    path: PathBuf,
    _lock: File,
}

/// The runs that are over, oldest first.
fn over(runs: &Path) -> anyhow::Result<Vec<Over>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(runs).with_context(|| format!("cannot read {}", runs.display()))?;
    for entry in entries {
        let entry = entry?;
        let hidden = entry.file_name().as_bytes().starts_with(b".");
        // `file_type` does not follow links, so `latest` is no directory.
        if hidden || !entry.file_type()?.is_dir() {
            continue;
        }
        let lock = open_lock(&entry.path().join("lock"))?;
        match lock.try_lock() {
            Ok(()) => found.push(Over {
                path: entry.path(),
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// How often a registry may grow under a sweep before it is left for the next.
const PASSES: usize = 5;

fn sweep_run(run: &Path) -> Option<Swept> {
    let registry = run.join(REGISTRY);
    let mut swept = Swept {
        run: name(run),
        removed: Vec::new(),
        stayed: Vec::new(),
    };
    let mut seen = None;
    for _ in 0..PASSES {
        let Ok(bytes) = fs::read(&registry) else {
            break;
        };
        // A runner that outlived its xtask may have started one more test
        // before it was killed itself, so a pass that found news is not the
        // last.
        if seen.replace(bytes.len()) == Some(bytes.len()) {
            if swept.stayed.is_empty()
                && let Err(error) = fs::rename(&registry, run.join("registry.swept"))
            {
                let place = registry.display();
                swept.stayed.push(format!("{place}: {error}"));
            }
            break;
        }
        swept.stayed.clear();
        for left in registered(&bytes) {
            match remove(run, &left) {
                Ok(None) => {}
                Ok(Some(what)) => swept.removed.push(what),
                Err(error) => swept.stayed.push(format!("{left}: {error}")),
            }
        }
    }
    (!swept.removed.is_empty() || !swept.stayed.is_empty()).then_some(swept)
}

/// The lines of a registry in the order in which things are removed: processes
/// first, because they hold the rest, those that start others before the
/// others; then the last made first.
fn registered(bytes: &[u8]) -> Vec<Left> {
    // Bytes and not text: a torn last line may end inside a character.
    let lines = bytes.split(|byte| *byte == b'\n');
    let left = lines.filter_map(|line| serde_json::from_slice(line).ok());
    let is_process = |left: &Left| matches!(left, Left::Process { .. });
    let (mut processes, mut things): (Vec<_>, Vec<_>) = left.partition(is_process);
    things.reverse();
    things.sort_by_key(|left| match left {
        Left::Process { .. } | Left::Mount { .. } => 0,
        Left::Loop { .. } => 1,
        Left::Socket { .. } => 2,
    });
    processes.append(&mut things);
    processes
}

/// What was removed; `None` when it was gone already or is not ours any more.
fn remove(run: &Path, left: &Left) -> io::Result<Option<String>> {
    match left {
        Left::Process { process, .. } => Ok(match process.kill(KILL_TIMEOUT)? {
            Ended::Before => None,
            Ended::Killed => Some(left.to_string()),
        }),
        Left::Mount { path } if !path.starts_with(run) => Ok(None),
        Left::Mount { path } => {
            match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => Ok(Some(left.to_string())),
                // EINVAL: not a mount point.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
        Left::Loop { device, backing } => {
            if !is_behind(device, backing) {
                return Ok(None);
            }
            loop_device::detach(device)?;
            Ok(Some(left.to_string()))
        }
        Left::Socket { path } => {
            let is_socket =
                fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            // A socket that answers has a new owner.
            if !is_socket || UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            match fs::remove_file(path) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                gone => gone.map(|()| Some(left.to_string())),
            }
        }
    }
}

/// Whether this file is behind this loop device, as the kernel says it.
fn is_behind(device: &Path, backing: &Path) -> bool {
    let Some(number) = device.file_name() else {
        return false;
    };
    let said = Path::new("/sys/block")
        .join(number)
        .join("loop/backing_file");
    let is = |said: Vec<u8>| {
        let said = said.trim_ascii_end();
        // The kernel says so when the file has lost its name.
        let said = said.strip_suffix(b" (deleted)").unwrap_or(said);
        said == backing.as_os_str().as_bytes()
    };
    fs::read(said).is_ok_and(is)
}

fn name(run: &Path) -> String {
    run.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[expect(unsafe_code, reason = "rustix has no wrapper for LOOP_CLR_FD")]
mod loop_device {
    use std::{fs::File, io, path::Path};

    use rustix::ioctl::{NoArg, Opcode, ioctl};

    /// `include/uapi/linux/loop.h`.
    const LOOP_CLR_FD: Opcode = 0x4C01;

    /// Let go of the file behind a loop device.
    pub(super) fn detach(device: &Path) -> io::Result<()> {
        let device = File::open(device)?;
        // SAFETY: LOOP_CLR_FD takes no argument and touches no memory of ours;
        // on a device that is no loop device it fails with ENOTTY.
        unsafe { ioctl(&device, NoArg::<LOOP_CLR_FD>::new()) }?;
        Ok(())
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "these tests need children that are killed on purpose"
)]
mod tests {
    use std::{
        os::unix::net::UnixListener,
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::rundir::{ProcessId, RunDir};

    fn child() -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().expect("spawned")
    }

    fn process(child: &Child) -> Left {
        Left::Process {
            process: ProcessId::of(child.id()).expect("alive"),
            what: "cat".into(),
        }
    }

    #[test]
    fn a_run_that_lives_is_not_touched_and_one_that_died_is_cleaned() {
        let root = tempfile::tempdir().expect("a directory");
        let (mut mine, mut theirs) = (child(), child());
        let living = RunDir::create(root.path()).expect("made");
        living.register(&process(&mine)).expect("noted");
        let dead = RunDir::create(root.path()).expect("made");
        dead.register(&process(&theirs)).expect("noted");
        let (id, path) = (dead.id(), dead.path().to_owned());
        drop(dead);

        let swept = sweep(root.path()).expect("swept");
        let expected = Swept {
            run: id,
            removed: vec![format!("process {} (cat)", theirs.id())],
            stayed: Vec::new(),
        };
        assert_eq!(swept, [expected]);
        assert!(!theirs.wait().expect("reaped").success());
        assert!(mine.try_wait().expect("asked").is_none(), "still running");
        assert_eq!(sweep(root.path()).expect("swept"), [], "once is enough");
        assert!(path.join("registry.swept").exists());
        mine.kill().expect("killed");
        mine.wait().expect("reaped");
    }

    #[test]
    fn a_torn_registry_is_swept_as_far_as_it_goes() {
        let root = tempfile::tempdir().expect("a directory");
        let mut theirs = child();
        let run = RunDir::create(root.path()).expect("made");
        run.register(&process(&theirs)).expect("noted");
        let path = run.path().join(REGISTRY);
        let mut bytes = fs::read(&path).expect("read");
        bytes.extend_from_slice(b"{\"left\":\"socket\",\"path\":\"/tmp/\xc3");
        fs::write(&path, bytes).expect("written");
        drop(run);
        assert_eq!(sweep(root.path()).expect("swept").len(), 1);
        theirs.wait().expect("reaped");
    }

    #[test]
    fn sockets_go_when_nobody_listens_and_files_stay() {
        let root = tempfile::tempdir().expect("a directory");
        let run = RunDir::create(root.path()).expect("made");
        let paths = ["dead", "alive", "file", "gone"].map(|name| root.path().join(name));
        let [dead, alive, file, _] = &paths;
        drop(UnixListener::bind(dead).expect("bound"));
        let _listener = UnixListener::bind(alive).expect("bound");
        fs::write(file, "mine").expect("written");
        for path in &paths {
            let path = path.clone();
            run.register(&Left::Socket { path }).expect("noted");
        }
        drop(run);
        let swept = sweep(root.path()).expect("swept");
        assert_eq!(swept[0].removed, [format!("socket {}", dead.display())]);
        let there = paths.each_ref().map(|path| path.exists());
        assert_eq!(there, [false, true, true, false]);
    }

    /// As root this takes real things down; without the privilege nothing can
    /// be made that would have to be taken down.
    #[test]
    fn mounts_and_loop_devices_go_and_only_ours() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().expect("a directory");
        let run = RunDir::create(root.path()).expect("made");
        let path = run.path().join("mnt");
        fs::create_dir(&path).expect("made");
        let tmpfs = rustix::mount::MountFlags::empty();
        if rustix::mount::mount("none", &path, "tmpfs", tmpfs, None).is_err() {
            return; // Root in a user namespace of somebody else's.
        }
        let backing = root.path().join("disk");
        let file = File::create(&backing).expect("made");
        file.set_len(1 << 20).expect("grown");
        let mut losetup = Command::new("losetup");
        let made = losetup.args(["--find", "--show"]).arg(&backing).output();
        let device = made
            .ok()
            .filter(|made| made.status.success())
            .map(|made| PathBuf::from(String::from_utf8_lossy(&made.stdout).trim()));

        // Another file behind the device: it belongs to somebody else by now.
        let stranger = RunDir::create(root.path()).expect("made");
        let mut expected = vec![format!("mount {}", path.display())];
        run.register(&Left::Mount { path: path.clone() })
            .expect("noted");
        if let Some(device) = device.clone() {
            expected.push(format!("loop device {}", device.display()));
            let other = root.path().join("another");
            let left = |backing: &Path| Left::Loop {
                device: device.clone(),
                backing: backing.to_owned(),
            };
            stranger.register(&left(&other)).expect("noted");
            run.register(&left(&backing)).expect("noted");
        }
        drop(stranger);
        let swept = sweep(root.path()).expect("swept");
        let spared = device
            .as_ref()
            .is_none_or(|device| is_behind(device, &backing));
        drop(run);
        let ours = sweep(root.path()).expect("swept");
        assert!(swept.is_empty() && spared, "{swept:?}");
        assert_eq!(ours[0].removed, expected);
        assert_eq!(ours[0].stayed, [""; 0]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
        assert!(!mounts.contains(&path.display().to_string()));
        assert!(device.is_none_or(|device| !is_behind(&device, &backing)));
    }

    #[test]
    fn old_runs_are_forgotten_but_not_kept_or_living_ones() {
        let root = tempfile::tempdir().expect("a directory");
        let make = || RunDir::create(root.path()).expect("made");
        let runs: Vec<_> = (0..6).map(|_| make()).collect();
        let mut ids: Vec<_> = runs.iter().map(RunDir::id).collect();
        ids.sort();
        let mut by_id = runs;
        by_id.sort_by_key(RunDir::id);
        by_id[0].keep().expect("marked");
        let living = by_id.remove(1);
        drop(by_id);
        assert_eq!(prune(root.path(), 2).expect("pruned"), ids[2..4]);
        assert_eq!(prune(root.path(), 2).expect("pruned"), [""; 0]);
        let there: Vec<_> = ids
            .iter()
            .map(|id| root.path().join("runs").join(id).exists())
            .collect();
        assert_eq!(there, [true, true, false, false, true, true]);
        drop(living);
    }
}
