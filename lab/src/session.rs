//! One guest with one data disk: the thing every story is told with.
//!
//! The disk's server runs in this process, so a mark in its log and the guest's
//! requests share one order. The lower filesystem is mounted at [`LOWER`], the
//! filesystem under test at [`MOUNT`]; a native mount is the lower one itself.

mod visit;

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use plugpull_disk::{Disk, DiskError, Reads, Recording, Server as DiskServer, View};
use plugpull_protocol::{
    Device, Exited, Observation, Promise, Reply, Request, WorkloadRequest, syncs::Note,
};
use plugpull_vm::{
    Guest, Trouble,
    guest::{Alarm, Pending, PromiseSink},
    lock::Slot,
    machine::Medium,
};

use crate::{
    runner::Progress,
    scenario::{IoMode, Lower, Mount, Mutant, Named, Server, TakenFor},
    testbed::Testbed,
};

pub use visit::{Visit, seen_at};

/// Where the lower filesystem is mounted in the guest.
pub const LOWER: &str = "/mnt/lower";
/// Where the filesystem under test is mounted in the guest.
pub const MOUNT: &str = "/mnt/fs";
/// The serial of the data disk.
pub const DATA: &str = "data";

/// Mounting replays a journal at most.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// Unmounting writes back what is dirty.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(90);
/// Checkers read all of the metadata.
const FSCK_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a disk is watched after its guest's end.
const LOOK_FOR_END: Duration = Duration::from_secs(1);
/// Requests that touch no disk.
const QUICK: Duration = Duration::from_secs(30);

/// A running guest, its disk, and what is mounted.
pub struct Session<'a> {
    bed: &'a Testbed,
    // The guest ends before the disk's server, so that the server sees its
    // client go away and not the other way round.
    guest: Guest,
    server: DiskServer,
    disk: Disk,
    device: Device,
    mounted: Vec<&'static str>,
    progress: Arc<Progress>,
    /// What mounting has read in visits so far.
    read_by_mounts: Reads,
    _slot: Slot,
}

/// What a session starts from.
pub struct Opening<'a> {
    /// The image's name.
    pub image: &'a crate::scenario::ImageName,
    /// The disk's shape.
    pub spec: crate::scenario::Disk,
    /// Its content.
    pub view: View,
    /// Where its log goes.
    pub log: PathBuf,
    /// Whether requests are recorded for cuts.
    pub record: bool,
    /// Where the disk's own choices come from.
    pub seed: u64,
    /// Where the guest's console and QEMU's messages go.
    pub logs: &'a Path,
    /// A slot that has been taken for it already.
    pub slot: Option<Slot>,
}

impl<'a> Session<'a> {
    /// Take a slot, serve the disk, start a clone on it.
    ///
    /// # Errors
    /// When the host cannot; nothing is left behind.
    pub fn start(bed: &'a Testbed, opening: Opening<'_>) -> Result<Self> {
        let slot = match opening.slot {
            Some(slot) => slot,
            None => bed.slot()?,
        };
        let template = bed.template(opening.image, opening.spec)?;
        std::fs::create_dir_all(opening.logs)
            .with_context(|| format!("make {}", opening.logs.display()))?;
        let config = bed.disk_config(opening.spec, opening.record, opening.seed);
        let disk = Disk::create(opening.view, &opening.log, config)?;
        let (client, server) = UnixStream::pair().context("make the disk's socket pair")?;
        let server = disk.serve_stream(server)?;
        let ledger = disk.clone();
        let progress = Arc::new(Progress::default());
        let saw = Arc::clone(&progress);
        let promises: PromiseSink = Arc::new(move |promise: Promise| {
            saw.saw(&promise);
            let text = serde_json::to_string(&promise).unwrap_or_default();
            // A disk that has lost power records nothing; the guest is dead.
            if let Err(error) = ledger.mark(&text) {
                tracing::debug!(%error, "a promise came after the power cut");
            }
        });
        let root = bed.image(opening.image)?.root.clone();
        let payload = bed.setup().payload.clone();
        let media = [
            Medium::File(root),
            Medium::File(payload),
            Medium::Nbd(client.as_fd()),
        ];
        let guest = template.clone_guest(
            &bed.setup().qemu,
            &media,
            opening.logs,
            promises,
            bed.slowness(),
        )?;
        drop(client);
        watch_disk(disk.clone(), guest.alarm())?;
        let session = Self {
            bed,
            guest,
            server,
            disk,
            device: Device::Serial(DATA.to_owned()),
            mounted: Vec::new(),
            progress,
            read_by_mounts: Reads::default(),
            _slot: slot,
        };
        session.ask(Request::AttachPayload, QUICK)?;
        if opening.spec.cache == crate::scenario::Cache::None {
            session.take_for(TakenFor::WriteThrough)?;
        }
        Ok(session)
    }

    /// The guest.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// What the workload has promised so far, counted.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// A deadline, scaled by the host's speed.
    pub fn scale(&self, timeout: Duration) -> Duration {
        self.bed.scale(timeout)
    }

    /// Put a device-mapper device, or the disk itself, below the lower mount.
    pub fn use_device(&mut self, device: Device) {
        self.device = device;
    }

    /// Ask for something that answers [`Reply::Done`].
    ///
    /// # Errors
    /// The guest's refusal or trouble.
    pub fn ask(&self, request: Request, timeout: Duration) -> Result<(), Trouble> {
        self.guest
            .request(request, self.bed.scale(timeout))
            .map(drop)
    }

    /// Run a program of the guest's to its end.
    ///
    /// # Errors
    /// The guest's refusal or trouble.
    pub fn exec(&self, argv: Vec<String>, timeout: Duration) -> Result<Exited> {
        let request = Request::Exec {
            argv,
            env: Vec::new(),
            uid: None,
            timeout_ms: self.timeout_ms(timeout),
        };
        match self.guest.request(request, self.bed.scale(2 * timeout))? {
            Reply::Exited(exited) => Ok(exited),
            other => bail!("the guest answered a program with {other:?}"),
        }
    }

    /// Run a workload or checker to its end.
    ///
    /// # Errors
    /// The guest's refusal or trouble.
    pub fn workload(&self, request: WorkloadRequest, timeout: Duration) -> Result<Observation> {
        let pending = self.begin(request)?;
        self.finish(pending, timeout)
    }

    /// Start a workload.
    ///
    /// # Errors
    /// When the guest cannot be asked.
    pub fn begin(&self, request: WorkloadRequest) -> Result<Pending, Trouble> {
        self.guest.send(Request::Workload(request))
    }

    /// Wait for a workload that was started.
    ///
    /// # Errors
    /// The guest's refusal or trouble.
    pub fn finish(&self, pending: Pending, timeout: Duration) -> Result<Observation> {
        match self
            .guest
            .answer(pending, "the workload", self.bed.scale(timeout))?
        {
            Reply::Observed(observation) => Ok(observation),
            other => bail!("the guest answered a workload with {other:?}"),
        }
    }

    /// Milliseconds for a request's own deadline inside the guest, below the
    /// host's deadline for the answer.
    pub fn timeout_ms(&self, timeout: Duration) -> u64 {
        u64::try_from(self.bed.scale(timeout).as_millis()).unwrap_or(u64::MAX)
    }

    /// Make the lower filesystem.
    ///
    /// # Errors
    /// The guest's refusal or trouble.
    pub fn mkfs(&self, lower: &Lower) -> Result<(), Trouble> {
        let (fs, args) = (lower.fs.name().to_owned(), lower.mkfs.clone());
        self.ask(
            Request::Mkfs {
                device: self.device.clone(),
                fs,
                args,
            },
            Duration::from_secs(180),
        )
    }

    /// Check the lower filesystem, which is not mounted, with its own tool,
    /// change nothing, and forget what it has read.
    ///
    /// # Errors
    /// The guest's trouble, also when the tool does not come to an end.
    pub fn fsck(&self, lower: &Lower) -> Result<Exited> {
        let request = Request::Fsck {
            device: self.device.clone(),
            fs: lower.fs.name().to_owned(),
            timeout_ms: self.timeout_ms(FSCK_TIMEOUT),
        };
        let reply = self.guest.request(request, self.scale(FSCK_TIMEOUT * 2))?;
        let device = self.device.clone();
        self.ask(Request::FlushDevice { device }, QUICK)?;
        match reply {
            Reply::Exited(exited) => Ok(exited),
            other => bail!("the guest answered fsck with {other:?}"),
        }
    }

    /// Mount the lower filesystem, unless it is left to a server that takes
    /// the block device.
    ///
    /// # Errors
    /// [`Trouble::Refused`] when the filesystem does not mount.
    pub fn mount_lower(&mut self, lower: &Lower) -> Result<(), Trouble> {
        match lower.mounted {
            true => self.mount_by_kernel(lower),
            false => Ok(()),
        }
    }

    /// Mount the lower filesystem by the guest's kernel, whoever serves it later.
    ///
    /// # Errors
    /// [`Trouble::Refused`] when the filesystem does not mount.
    pub fn mount_by_kernel(&mut self, lower: &Lower) -> Result<(), Trouble> {
        self.ask(self.lower_request(lower), MOUNT_TIMEOUT)?;
        self.mounted.push(LOWER);
        Ok(())
    }

    fn lower_request(&self, lower: &Lower) -> Request {
        Request::Mount {
            device: self.device.clone(),
            fs: lower.fs.name().to_owned(),
            options: lower.options.clone(),
            at: LOWER.to_owned(),
        }
    }

    /// Mount the filesystem under test over the lower one; returns where
    /// programs find it.
    ///
    /// # Errors
    /// [`Trouble::Refused`] when its server does not mount.
    pub fn mount(&mut self, mount: &Mount) -> Result<&'static str, Trouble> {
        if let Some(request) = self.serve_request(mount) {
            self.ask(request, MOUNT_TIMEOUT * 2)?;
            self.mounted.push(MOUNT);
        }
        Ok(seen_at(mount))
    }

    fn serve_request(&self, mount: &Mount) -> Option<Request> {
        let argv = match &mount.server {
            Server::Native => return None,
            Server::PlugpullFs {
                mutant,
                threads,
                io,
                options,
            } => {
                let binary = match mutant {
                    Some(_) => "plugpull-fs-mutants",
                    None => "plugpull-fs",
                };
                let mut argv = vec![format!("/mnt/payload/{binary}")];
                argv.push(String::from("--foreground"));
                argv.extend(plugpull_fs(mutant.as_ref(), *threads, io.as_ref()));
                if !options.is_empty() {
                    argv.extend([String::from("-o"), options.clone()]);
                }
                argv.extend([LOWER.to_owned(), MOUNT.to_owned()]);
                if wants_io_uring(options) {
                    with_io_uring(argv)
                } else {
                    argv
                }
            }
            // Where the disk's node is, the guest knows.
            Server::Program { run, .. } => {
                run.filled(&[("lower", LOWER), ("mount", MOUNT), ("device", "{device}")])
            }
        };
        Some(Request::Serve {
            argv,
            device: self.device.clone(),
            at: MOUNT.to_owned(),
            timeout_ms: self.timeout_ms(MOUNT_TIMEOUT),
        })
    }

    /// Have the guest's block layer take the disk for something. For write-through
    /// it sends no flush: right for a disk without a cache, and for one that will
    /// lose no power.
    ///
    /// # Errors
    /// The guest's refusal or trouble.
    pub fn take_for(&self, what: TakenFor) -> Result<(), Trouble> {
        let request = Request::SetWriteCache {
            device: self.device.clone(),
            volatile: what == TakenFor::WriteBack,
        };
        self.ask(request, QUICK)
    }

    /// Have the guest note which calls ask what is mounted for durability. One
    /// that cannot says why, and failures are laid at no door.
    ///
    /// # Errors
    /// The guest's trouble.
    pub fn watch_syncs(&self) -> Result<(), Trouble> {
        let request = Request::WatchSyncs {
            device: self.device.clone(),
            lower: LOWER.to_owned(),
            mount: self.mounted.last().copied().unwrap_or(LOWER).to_owned(),
        };
        match self.ask(request, QUICK) {
            Err(Trouble::Refused(why)) => {
                let note = Note::Blind {
                    why: why.to_string(),
                }
                .mark();
                let text = serde_json::to_string(&note).unwrap_or_default();
                // A disk that has lost power has an end to be seen elsewhere.
                let _ = self.disk.mark(&text);
                Ok(())
            }
            other => other,
        }
    }

    /// Unmount the filesystem under test, leaving the lower one.
    ///
    /// # Errors
    /// [`Trouble::Refused`] when it is busy or its server ended badly.
    pub fn unmount(&mut self) -> Result<(), Trouble> {
        if self.mounted.last() == Some(&MOUNT) {
            self.unmount_last()?;
        }
        Ok(())
    }

    /// Unmount everything and forget the disk's cached blocks.
    ///
    /// # Errors
    /// As [`Session::unmount`].
    pub fn unmount_all(&mut self) -> Result<(), Trouble> {
        while !self.mounted.is_empty() {
            self.unmount_last()?;
        }
        self.ask(
            Request::FlushDevice {
                device: self.device.clone(),
            },
            UNMOUNT_TIMEOUT,
        )
    }

    fn unmount_last(&mut self) -> Result<(), Trouble> {
        let Some(at) = self.mounted.last().copied() else {
            return Ok(());
        };
        self.ask(self.unmount_request(at), UNMOUNT_TIMEOUT * 2)?;
        self.mounted.pop();
        Ok(())
    }

    fn unmount_request(&self, at: &str) -> Request {
        Request::Unmount {
            at: at.to_owned(),
            timeout_ms: self.timeout_ms(UNMOUNT_TIMEOUT),
        }
    }

    /// Swap the disk's content for another; nothing may be mounted, and the
    /// guest must have forgotten the disk's cached blocks, as it has after
    /// [`Session::unmount_all`], [`Session::visit`] and [`Session::fsck`]. Returns
    /// what the disk has recorded until now.
    ///
    /// # Errors
    /// When something is mounted or the log cannot be made.
    pub fn swap(&mut self, view: View, log: &Path) -> Result<Option<Recording>> {
        anyhow::ensure!(
            self.mounted.is_empty(),
            "{:?} are still mounted",
            self.mounted
        );
        self.disk.swap(view, log)
    }

    /// End the guest at once, as a power cut does, and close the disk's log.
    ///
    /// # Errors
    /// When QEMU cannot be ended.
    pub fn pull_the_plug(self) -> Result<Disk> {
        let Self {
            guest,
            server,
            disk,
            ..
        } = self;
        guest.pull_the_plug()?;
        drop(server);
        Ok(disk)
    }

    /// Unmount everything, power off, and hand back the disk.
    ///
    /// # Errors
    /// When the guest does not end well.
    pub fn power_off(mut self) -> Result<Disk> {
        self.unmount_all()?;
        let timeout = self.bed.scale(UNMOUNT_TIMEOUT);
        let Self {
            guest,
            server,
            disk,
            ..
        } = self;
        guest.power_off(timeout)?;
        drop(server);
        Ok(disk)
    }
}

/// Whether these mount options of plugpull-fs ask for FUSE over io_uring.
fn wants_io_uring(options: &str) -> bool {
    options
        .split(',')
        .any(|option| option == "transport=io-uring")
}

/// The same command in a guest whose kernel offers FUSE over io_uring, if it can; Debian
/// leaves that switched off.
fn with_io_uring(argv: Vec<String>) -> Vec<String> {
    const SCRIPT: &str = "echo Y > /sys/module/fuse/parameters/enable_uring; exec \"$@\"";
    let shell = ["/bin/sh", "-c", SCRIPT, "sh"].map(String::from);
    shell.into_iter().chain(argv).collect()
}

/// Tell the guest's waiters when the disk's log cannot be written: the disk
/// answers nothing from then on, and they would wait for the guest's kernel to
/// complain.
fn watch_disk(disk: Disk, alarm: Alarm) -> Result<()> {
    let watch = move || {
        while !alarm.is_over() {
            match disk.wait_cut(LOOK_FOR_END) {
                Ok(None) => {}
                Err(failed @ DiskError::LogFailed(_)) => return alarm.raise(failed.to_string()),
                // It ended as it was meant to.
                Ok(Some(_)) | Err(_) => return,
            }
        }
    };
    std::thread::Builder::new()
        .name(String::from("disk-watch"))
        .spawn(watch)
        .map(drop)
        .context("start the thread that watches the disk")
}

/// The arguments of our own filesystem that it checks before all else.
pub(crate) fn plugpull_fs(
    mutant: Option<&Mutant>,
    threads: Option<std::num::NonZeroU32>,
    io: Option<&IoMode>,
) -> Vec<String> {
    let values = [
        ("--mutant", mutant.map(ToString::to_string)),
        ("--threads", threads.map(|threads| threads.to_string())),
        ("--io", io.map(ToString::to_string)),
    ];
    let given = values
        .into_iter()
        .filter_map(|(name, value)| Some([name.to_owned(), value?]));
    given.flatten().collect()
}
