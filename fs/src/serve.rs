//! From a parsed command line to a mounted filesystem, and its end.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use fuser::{MountOption, Session, SessionACL, SessionUnmounter};
use rustix::fs::Mode;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Resource, getrlimit, setrlimit, umask};
use tracing::{info, warn};

use crate::Errno;
use crate::adapter::Adapter;
use crate::options::MountOptions;
use crate::passthrough::{IoMode, Passthrough, Settings};
use crate::sys::BlockedSignals;

/// The type that mount(8) shows is `fuse.` and this.
const SUBTYPE: &str = "plugpull-fs";

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
    /// Changes the process: the umask becomes 0 (the kernel has applied the caller's),
    /// the limit of open files becomes the hard one, and SIGTERM, SIGINT and SIGHUP
    /// are blocked.
    ///
    /// # Errors
    /// What could not be opened or mounted, by name.
    pub fn new(plan: &Plan) -> Result<Self> {
        umask(Mode::empty());
        raise_open_file_limit();
        let signals = BlockedSignals::termination().context("block termination signals")?;
        let mountpoint = existing_dir(&plan.mountpoint).context("mount point")?;
        let source = existing_dir(&plan.source).context("source")?;
        let settings = Settings {
            io: plan.io,
            ..Settings::default()
        };
        let fs = Passthrough::new(&source, settings)
            .with_context(|| format!("open source {}", source.display()))?;
        let config = session_config(plan, &source);
        let session = Session::new(Adapter::new(fs), &mountpoint, &config)
            .with_context(|| format!("mount on {}", mountpoint.display()))?;
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
        self.session.run().context("serve requests")?;
        info!("unmounted");
        Ok(())
    }
}

fn session_config(plan: &Plan, source: &Path) -> fuser::Config {
    let root = rustix::process::geteuid().is_root();
    let options = &plan.options;
    let mut mount_options = options.to_fuser();
    let name = match &options.source_name {
        Some(name) => name.clone(),
        None => source.to_string_lossy().into_owned(),
    };
    mount_options.push(MountOption::FSName(name));
    let subtype = options.subtype.as_deref().unwrap_or(SUBTYPE);
    mount_options.push(if root {
        // fuser keeps its own variant for fusermount; the kernel takes it as an option.
        MountOption::CUSTOM(format!("subtype={subtype}"))
    } else {
        MountOption::Subtype(subtype.to_owned())
    });
    // A server with root's rights must not let others in unless the kernel checks them.
    let permissions = MountOption::DefaultPermissions;
    if (root || options.allow_other) && !mount_options.contains(&permissions) {
        mount_options.push(permissions);
    }
    let mut config = fuser::Config::default();
    config.acl = if root || options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(plan.threads);
    config.mount_options = mount_options;
    config
}

fn existing_dir(path: &Path) -> Result<PathBuf> {
    let found = path
        .canonicalize()
        .with_context(|| path.display().to_string())?;
    ensure!(found.is_dir(), "{} is not a directory", path.display());
    Ok(found)
}

/// One descriptor per known inode and open file: the soft limit of 1024 is too low.
fn raise_open_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
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
        let Some(unmounter) = unmounter.take() else {
            warn!("asked again: ending although files are in use");
            std::process::exit(1);
        };
        if let Err(error) = detach(mountpoint, unmounter) {
            warn!(%error, mountpoint = %mountpoint.display(), "cannot unmount");
        }
    }
}

fn detach(mountpoint: &Path, mut unmounter: SessionUnmounter) -> std::io::Result<()> {
    match unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => {
            warn!("in use: serving open files until they are closed");
            let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
            unmount(mountpoint, flags).map_err(Into::into)
        }
        // Not root: fusermount3 has to do it.
        Err(Errno::PERM) => unmounter.unmount(),
        unmounted => unmounted.map_err(Into::into),
    }
}
