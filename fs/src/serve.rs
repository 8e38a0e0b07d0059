//! From a parsed command line to a mounted filesystem, and its end.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use fuser::{Session, SessionUnmounter};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use tracing::{info, warn};

use crate::Errno;
use crate::adapter::Adapter;
use crate::mounting::{detach, mount_as_root, mount_as_user};
use crate::options::MountOptions;
use crate::passthrough::{IoMode, Passthrough, Settings};
use crate::sys::BlockedSignals;

/// Everything that is needed to mount.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory that is shown.
    pub source: PathBuf,
    /// The directory over which it is shown.
    pub mountpoint: PathBuf,
    /// How reads and writes travel.
    pub io: IoMode,
    /// Dispatch threads.
    pub threads: usize,
    /// What followed `-o`.
    pub options: MountOptions,
}

/// A mounted filesystem whose requests nobody answers yet.
#[derive(Debug)]
pub struct Mounted {
    session: Session<Adapter>,
    signals: BlockedSignals,
    mountpoint: PathBuf,
}

impl Mounted {
    /// Mounts. From here on the kernel accepts requests; [`Mounted::serve`] answers them.
    ///
    /// Changes the process: the umask becomes 0 (each caller's own is applied),
    /// the limit of open files becomes the hard one, and SIGTERM, SIGINT and SIGHUP
    /// are blocked.
    ///
    /// # Errors
    /// What could not be opened or mounted, by name.
    pub fn new(plan: &Plan) -> Result<Self> {
        umask(Mode::empty());
        raise_open_file_limit();
        ensure!(
            Path::new("/proc/self/fd").exists(),
            "/proc is not mounted, and inodes are reopened through it"
        );
        let signals = BlockedSignals::termination().context("block termination signals")?;
        let mountpoint = existing_dir(&plan.mountpoint).context("mount point")?;
        let source = existing_dir(&plan.source).context("source")?;
        let settings = Settings {
            io: plan.io,
            ..Settings::default()
        };
        let fs = Passthrough::new(&source, settings)
            .with_context(|| format!("open source {}", source.display()))?;
        let root = rustix::process::geteuid().is_root();
        let mount = if root { mount_as_root } else { mount_as_user };
        let adapter = Adapter::new(fs);
        let session = mount(adapter, &source, &mountpoint, plan.threads, &plan.options)?;
        info!(
            source = %source.display(),
            mountpoint = %mountpoint.display(),
            threads = plan.threads,
            io = ?plan.io,
            "mounted"
        );
        Ok(Mounted {
            session,
            signals,
            mountpoint,
        })
    }

    /// Answers requests until the filesystem is unmounted, by umount(8) or, on the
    /// first termination signal, by itself; files that are in use then are served until
    /// they are closed. A second signal ends the process at once.
    ///
    /// # Errors
    /// What made a dispatch thread give up.
    pub fn serve(mut self) -> Result<()> {
        let unmounter = self.session.unmount_callable();
        let (signals, mountpoint) = (self.signals, self.mountpoint);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || unmount_on_signal(&signals, &mountpoint, unmounter))
            .context("start the signal thread")?;
        match self.session.run() {
            // A dispatch thread that has just taken a request (a late RELEASE, mostly)
            // when the connection ends is told this, and the others ENODEV
            // (fuse_dev_do_read in fs/fuse/dev.c). Both are the end of the mount.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
            served => served.context("serve requests")?,
        }
        info!("unmounted");
        Ok(())
    }
}

fn existing_dir(path: &Path) -> Result<PathBuf> {
    let found = path
        .canonicalize()
        .with_context(|| path.display().to_string())?;
    ensure!(found.is_dir(), "{} is not a directory", path.display());
    Ok(found)
}

/// One descriptor per known inode and open file: the usual limits, 1024 and 4096, are too low.
/// A privileged server takes all that the kernel gives any process (`fs.nr_open`, proc(5)).
fn raise_open_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    if let Some(most) = most {
        let all = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        if setrlimit(Resource::Nofile, all).is_ok() {
            return;
        }
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

fn unmount_on_signal(signals: &BlockedSignals, mountpoint: &Path, unmounter: SessionUnmounter) {
    let mut unmounter = Some(unmounter);
    loop {
        match signals.wait() {
            Ok(signal) => info!(signal, "asked to end"),
            Err(error) => {
                warn!(%error, "cannot wait for signals");
                return;
            }
        }
        let Some(mut unmounter) = unmounter.take() else {
            warn!("asked again: ending although files are in use");
            std::process::exit(1);
        };
        let unmounted = match detach(mountpoint) {
            // Not root: fusermount3 has to do it.
            Err(Errno::PERM) => unmounter.unmount(),
            unmounted => unmounted.map_err(Into::into),
        };
        if let Err(error) = unmounted {
            warn!(%error, mountpoint = %mountpoint.display(), "cannot unmount");
        }
    }
}
