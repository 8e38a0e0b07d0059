//! From a parsed command line to a mounted filesystem, and its end.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use plugpull_fuse::{Device, Session, mount};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use tracing::{info, warn};

use crate::adapter::Adapter;
use crate::options::MountOptions;
use crate::passthrough::{IoMode, Passthrough, Settings, Transport};
use crate::sys::BlockedSignals;

/// Everything that is needed to mount.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory that is shown.
    pub source: PathBuf,
    /// The directory over which it is shown.
    pub mountpoint: PathBuf,
    /// How reads and writes travel, and what the kernel may believe.
    pub settings: Settings,
    /// Dispatch threads.
    pub threads: usize,
    /// What followed `-o`.
    pub options: MountOptions,
    /// How long fusermount3 may take.
    pub patience: Duration,
}

/// A mounted filesystem whose requests nobody answers yet.
#[derive(Debug)]
pub struct Mounted {
    session: Session<Adapter>,
    signals: BlockedSignals,
    mountpoint: PathBuf,
    threads: usize,
    patience: Duration,
}

impl Mounted {
    /// Mounts. From here on the kernel accepts requests; [`Mounted::serve`] answers them.
    ///
    /// Changes the process: the umask becomes 0 (each caller's own is applied), root's
    /// supplementary groups are dropped,
    /// the limit of open files becomes the hard one, and SIGTERM, SIGINT and SIGHUP
    /// are blocked.
    ///
    /// # Errors
    /// What could not be opened or mounted, by name.
    pub fn new(plan: &Plan) -> Result<Self> {
        umask(Mode::empty());
        if rustix::process::geteuid().is_root() {
            // Whether a caller is in a file's group is answered for the caller; groups of
            // this process would answer for it. Root's other rights need none.
            rustix::thread::set_thread_groups(&[]).context("setgroups")?;
        }
        raise_open_file_limit();
        ensure!(
            Path::new("/proc/self/fd").exists(),
            "/proc is not mounted, and inodes are reopened through it"
        );
        let signals = BlockedSignals::termination().context("block termination signals")?;
        let mountpoint = existing_dir(&plan.mountpoint).context("mount point")?;
        let source = existing_dir(&plan.source).context("source")?;
        let fs = Passthrough::new(&source, plan.settings)
            .with_context(|| format!("open source {}", source.display()))?;
        let device = attach(&source, &mountpoint, plan)?;
        let session = shake_hands(device, fs, &plan.settings).inspect_err(|_| {
            // Without a server behind it the mount would only hang those who look at it.
            if let Err(error) = mount::detach(&mountpoint, plan.patience) {
                tracing::error!(%error, mountpoint = %mountpoint.display(), "left behind");
            }
        })?;
        let settings = session.filesystem().passthrough().settings();
        info!(
            source = %source.display(),
            mountpoint = %mountpoint.display(),
            threads = plan.threads,
            io = settings.io.name(),
            cache = settings.cache.name(),
            transport = if session.is_over_io_uring() { "io-uring" } else { "device" },
            "mounted"
        );
        Ok(Mounted {
            session,
            signals,
            mountpoint,
            threads: plan.threads,
            patience: plan.patience,
        })
    }

    /// Answers requests until the filesystem is unmounted, by umount(8) or, on the
    /// first termination signal, by itself; files that are in use then are served until
    /// they are closed. A second signal ends the process at once.
    ///
    /// # Errors
    /// What made a dispatch thread give up.
    pub fn serve(self) -> Result<()> {
        let (signals, mountpoint, patience) = (self.signals, self.mountpoint, self.patience);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || unmount_on_signal(&signals, &mountpoint, patience))
            .context("start the signal thread")?;
        self.session.run(self.threads).context("serve requests")?;
        info!("unmounted");
        Ok(())
    }
}

/// The type that mount(8) shows is `fuse.` and this.
const SUBTYPE: &str = "plugpull-fs";

/// Mounts: root by itself, everybody else through fusermount3.
fn attach(source: &Path, mountpoint: &Path, plan: &Plan) -> Result<Device> {
    let options = &plan.options;
    let shown = source.to_string_lossy();
    let root = rustix::process::geteuid().is_root();
    let helper_options = options.helper_options();
    let what = mount::What {
        source: options.source_name.as_deref().unwrap_or(&shown),
        subtype: options.subtype.as_deref().unwrap_or(SUBTYPE),
        options: if root {
            options.fuse_options()
        } else {
            &helper_options
        },
    };
    if !root {
        return mount::as_user(mountpoint, &what, plan.patience);
    }
    let device = Device::open().context("open /dev/fuse (is the kernel module `fuse` loaded?)")?;
    mount::as_root(&device, mountpoint, &what, options.flags())?;
    Ok(device)
}

fn shake_hands(device: Device, fs: Passthrough, asked: &Settings) -> Result<Session<Adapter>> {
    let session = Session::new(device, Adapter::new(fs)).context("FUSE handshake")?;
    let settled = session.filesystem().passthrough().settings().io;
    ensure!(
        asked.io == IoMode::Auto || asked.io == settled,
        "the I/O mode `{}` cannot be had here (passthrough needs root, and Linux 6.9 or later \
         built with CONFIG_FUSE_PASSTHROUGH); `--io auto` takes the best that there is",
        asked.io.name()
    );
    ensure!(
        asked.transport != Transport::IoUring || session.is_over_io_uring(),
        "this kernel does not offer FUSE over io_uring (Linux 6.14 or later, built with \
         CONFIG_FUSE_IO_URING, after `echo Y > /sys/module/fuse/parameters/enable_uring`); \
         `--transport auto` takes it where it can be had"
    );
    Ok(session)
}

fn existing_dir(path: &Path) -> Result<PathBuf> {
    let shown = path.display().to_string();
    let found = path.canonicalize().with_context(|| shown.clone())?;
    match found.metadata() {
        Ok(metadata) => ensure!(metadata.is_dir(), "{shown} is not a directory"),
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => bail!(
            "{shown} is a mount whose server is gone; `fusermount3 -u {shown}` or, as root, \
             `umount {shown}` takes it off"
        ),
        Err(error) => return Err(error).context(shown),
    }
    Ok(found)
}

/// One descriptor per open file, and where inodes cannot be found again by handle, one per
/// known inode: the usual limits, 1024 and 4096, are too low.
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

fn unmount_on_signal(signals: &BlockedSignals, mountpoint: &Path, patience: Duration) {
    let mut asked = false;
    loop {
        match signals.wait() {
            Ok(signal) => info!(signal, "asked to end"),
            Err(error) => {
                warn!(%error, "cannot wait for signals");
                return;
            }
        }
        if asked {
            warn!("asked again: ending although files are in use");
            std::process::exit(1);
        }
        asked = true;
        match mount::detach(mountpoint, patience) {
            Ok(true) => warn!("in use: serving open files until they are closed"),
            Ok(false) => {}
            Err(error) => {
                warn!(%error, mountpoint = %mountpoint.display(), "cannot unmount");
            }
        }
    }
}
