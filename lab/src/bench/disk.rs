//! What the recording disk costs a guest, against QEMU's raw file driver and
//! against qemu-nbd.
//!
//! One guest has a disk of each kind, so processor, kernel and QEMU are the
//! same for all; within a round they take turns, and the turns rotate. Each
//! round is a new clone with empty disks. What is written stays in memory
//! (tmpfs), so that the host's own disk is not what is measured.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use plugpull_disk::{Disk, Server};
use plugpull_protocol::{Reply, Request};
use plugpull_vm::{
    Guest, host,
    machine::{Bus, DiskShape, Medium, Shape},
    process::{Child, Cmd},
    template::{Plan, Template},
};

use super::{
    DATA_DISK, Stage,
    dd::{DD, Written},
    figures::{Figure, Group, Setting, Sheet, Unit, costs},
    vm::empty_disk,
};
use crate::scenario::ImageName;

/// Memory that outlives nothing: files in it lose their names as soon as all
/// have opened them.
const TMPFS: &str = "/dev/shm";
/// Of each disk.
const DISK_BYTES: u64 = 512 << 20;
/// Three disks and the recording's own overhead.
const TMPFS_BYTES: u64 = 4 * DISK_BYTES;
/// How long dd may take on a host of speed 1.
const DD_DEADLINE: Duration = Duration::from_secs(120);

/// What serves a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Recorder,
    RawFile,
    QemuNbd,
}

impl Kind {
    /// The disk's serial in the guest.
    fn serial(self) -> &'static str {
        match self {
            Self::Recorder => "recorder",
            Self::RawFile => "raw-file",
            Self::QemuNbd => "qemu-nbd",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Recorder => "recording disk (NBD)",
            Self::RawFile => "QEMU's raw file driver",
            Self::QemuNbd => "qemu-nbd, raw file",
        }
    }
}

/// One way of writing.
struct Load {
    title: &'static str,
    block_bytes: u64,
    count: u64,
    /// dd's flags for it.
    flags: &'static [&'static str],
    unit: Unit,
    /// How many percent of throughput the recorder may cost.
    cost_at_most: f64,
}

const LOADS: [Load; 4] = [
    Load {
        title: "sequential write, 256 MiB through the guest's page cache, fsync at the end",
        block_bytes: 1 << 20,
        count: 256,
        flags: &["conv=fsync"],
        unit: Unit::MegabytesPerSecond,
        cost_at_most: 15.0,
    },
    Load {
        title: "sequential write, 256 MiB, O_DIRECT, 1 MiB at a time, fsync at the end",
        block_bytes: 1 << 20,
        count: 256,
        flags: &["oflag=direct", "conv=fsync"],
        unit: Unit::MegabytesPerSecond,
        cost_at_most: 15.0,
    },
    Load {
        title: "4 KiB write + flush, each (O_DIRECT|O_DSYNC), 1000 times",
        block_bytes: 4 << 10,
        count: 1000,
        flags: &["oflag=direct,dsync"],
        unit: Unit::PerSecond,
        cost_at_most: 35.0,
    },
    Load {
        title: "8 KiB write + flush, each (O_DIRECT|O_DSYNC), 1000 times",
        block_bytes: 8 << 10,
        count: 1000,
        flags: &["oflag=direct,dsync"],
        unit: Unit::PerSecond,
        cost_at_most: 35.0,
    },
];

/// A warm-up writes this part of each load: QEMU's translator has then seen
/// every path in the guest's kernel.
const WARM_UP_PART: u64 = 16;

/// The recording disk beside its peers.
///
/// # Errors
/// When the guest or a server of a disk does not do its part.
pub fn disk(stage: Stage<'_>, image: &ImageName, rounds: u32) -> Result<Sheet> {
    host::require_space(Path::new(TMPFS), TMPFS_BYTES)?;
    let qemu_nbd = host::program("qemu-nbd");
    let mut kinds = vec![Kind::Recorder, Kind::RawFile];
    kinds.extend(qemu_nbd.is_some().then_some(Kind::QemuNbd));
    let setting = Setting::of(stage.bed)?;
    let mut sheet = Sheet::new("disk", setting, notes(qemu_nbd.as_deref())?);
    let _slot = stage.bed.slot()?;
    let (_dir, template) = template(stage, image, &kinds)?;
    let mut results = vec![vec![Vec::new(); kinds.len()]; LOADS.len()];
    for round in 0..rounds as usize {
        let rig = Rig::start(stage, image, &template, &kinds, qemu_nbd.as_deref())?;
        for kind in &kinds {
            for load in &LOADS {
                rig.write(*kind, load, load.count / WARM_UP_PART)?;
            }
        }
        for (load, results) in LOADS.iter().zip(&mut results) {
            for turn in 0..kinds.len() {
                let turn = (turn + round) % kinds.len();
                let result = rig.write(kinds[turn], load, load.count)?;
                results[turn].push(result);
            }
        }
        rig.end()?;
        stage.tell(format!("round {} of {rounds} measured", round + 1));
    }
    let groups = LOADS.iter().zip(&results);
    sheet.groups = groups
        .map(|(load, results)| group(load, &kinds, results))
        .collect();
    Ok(sheet)
}

fn notes(qemu_nbd: Option<&Path>) -> Result<Vec<String>> {
    let mut notes: Vec<String> = [
        "one guest with a disk of each kind; dd writes to the block device itself, so no \
         filesystem of the guest is measured; each round is a new clone with empty disks",
        "through the page cache, many requests are under way at once, as when a filesystem \
         writes back; with O_DIRECT one at a time, so each answer is waited for",
        "raw file and qemu-nbd: cache=writeback (the host's page cache), aio=threads, and a flush \
         is fdatasync of the file; the recorder appends to its log and answers a flush from \
         memory, without a sync on the host",
        "files and log are on tmpfs, where fdatasync costs a system call: the host's disk is not \
         measured, which favours the peers",
        "cost: throughput lost against the raw file driver, round by round",
    ]
    .map(str::to_owned)
    .into();
    notes.push(match qemu_nbd {
        Some(program) => {
            let said = Cmd::new(program)
                .arg("--version")
                .run(Duration::from_secs(10))?
                .stdout_text();
            said.lines().next().unwrap_or("qemu-nbd").to_owned()
        }
        None => String::from("this host has no qemu-nbd (qemu-utils): left out"),
    });
    Ok(notes)
}

fn group(load: &Load, kinds: &[Kind], results: &[Vec<f64>]) -> Group {
    let of = |kind: Kind| {
        let at = kinds.iter().position(|other| *other == kind)?;
        results.get(at)
    };
    let mut figures = Vec::new();
    for (kind, samples) in kinds.iter().zip(results) {
        figures.extend(Figure::sampled(kind.label(), load.unit, samples));
    }
    for kind in [Kind::Recorder, Kind::QemuNbd] {
        if let (Some(ours), Some(raw)) = (of(kind), of(Kind::RawFile)) {
            let cost = costs(ours, raw);
            let name = format!("cost of {}", kind.label());
            let figure = Figure::sampled(name, Unit::Percent, &cost);
            figures.extend(match kind {
                Kind::Recorder => figure.map(|figure| figure.at_most(load.cost_at_most)),
                Kind::RawFile | Kind::QemuNbd => figure,
            });
        }
    }
    Group {
        title: load.title.to_owned(),
        figures,
    }
}

/// A template whose guests have a disk of each kind.
fn template(
    stage: Stage<'_>,
    image: &ImageName,
    kinds: &[Kind],
) -> Result<(tempfile::TempDir, Template)> {
    let dir = tempfile::tempdir_in(stage.dir).context("make a directory for the template")?;
    let template = stage.bed.with_plan(image, DATA_DISK, |plan| {
        // Root and payload disk as in every guest.
        let mut disks = plan.shape.disks[..2].to_vec();
        let mut media: Vec<_> = stage.media(image)?.into();
        for kind in kinds {
            disks.push(DiskShape {
                serial: kind.serial().to_owned(),
                bus: Bus::Virtio,
                bytes: DISK_BYTES,
                physical_block: DATA_DISK.unit,
                read_only: false,
            });
            media.push(Medium::Null);
        }
        let shape = Shape {
            disks,
            ..plan.shape.clone()
        };
        Template::ensure(&Plan {
            shape: &shape,
            media: &media,
            templates: dir.path(),
            ..*plan
        })
    })?;
    Ok((dir, template))
}

/// A guest and what serves its disks. The guest ends first.
struct Rig<'a> {
    stage: Stage<'a>,
    guest: Guest,
    _server: Server,
    _disk: Disk,
    _qemu_nbd: Option<Child>,
}

impl<'a> Rig<'a> {
    fn start(
        stage: Stage<'a>,
        image: &ImageName,
        template: &Template,
        kinds: &[Kind],
        qemu_nbd: Option<&Path>,
    ) -> Result<Self> {
        // Gone at the end of this function: by then all of it is open, and a
        // process that is killed later leaves no memory in use.
        let files = tempfile::tempdir_in(TMPFS).context("make a directory on tmpfs")?;
        let logs = tempfile::tempdir_in(stage.dir).context("make a directory for logs")?;
        let disk = empty_disk(
            &files.path().join("recorder.disklog"),
            DISK_BYTES,
            stage.bed,
        )?;
        let (recorder, server) = UnixStream::pair().context("make the disk's socket pair")?;
        let server = disk.serve_stream(server)?;
        let peer = match qemu_nbd {
            Some(program) => {
                let file = sparse(&files.path().join("qemu-nbd.img"))?;
                Some(serve_with(
                    program,
                    &file,
                    &logs.path().join("qemu-nbd.log"),
                )?)
            }
            None => None,
        };
        let raw = sparse(&files.path().join("raw-file.img"))?;
        let mut media: Vec<_> = stage.media(image)?.into();
        for kind in kinds {
            media.push(match (kind, &peer) {
                (Kind::Recorder, _) => Medium::Nbd(recorder.as_fd()),
                (Kind::RawFile, _) => Medium::File(raw.clone()),
                (Kind::QemuNbd, Some((_, stream))) => Medium::Nbd(stream.as_fd()),
                (Kind::QemuNbd, None) => bail!("a disk of qemu-nbd, and no qemu-nbd"),
            });
        }
        let qemu = &stage.bed.setup().qemu;
        let slowness = stage.bed.slowness();
        let guest = template.clone_guest(qemu, &media, logs.path(), Arc::new(|_| {}), slowness)?;
        Ok(Self {
            stage,
            guest,
            _server: server,
            _disk: disk,
            _qemu_nbd: peer.map(|(child, _)| child),
        })
    }

    /// Write so many blocks; the throughput in the load's unit.
    fn write(&self, kind: Kind, load: &Load, count: u64) -> Result<f64> {
        let timeout = self.stage.bed.scale(DD_DEADLINE);
        let mut argv: Vec<_> = ["/bin/sh", "-c", DD, "dd", kind.serial()]
            .map(str::to_owned)
            .into();
        argv.extend([load.block_bytes.to_string(), count.to_string()]);
        argv.extend(load.flags.iter().copied().map(str::to_owned));
        let request = Request::Exec {
            argv,
            env: vec![(String::from("LC_ALL"), String::from("C"))],
            uid: None,
            timeout_ms: u64::try_from(timeout.as_millis())?,
        };
        let exited = match self.guest.request(request, timeout * 2)? {
            Reply::Exited(exited) => exited,
            other => bail!("the guest answered a program with {other:?}"),
        };
        let written =
            Written::of(&exited).with_context(|| format!("write to the disk {}", kind.serial()))?;
        let expected = load.block_bytes * count;
        ensure!(
            written.bytes == expected,
            "dd wrote {} bytes, not {expected}",
            written.bytes
        );
        Ok(match load.unit {
            Unit::PerSecond => count as f64 / written.seconds,
            _ => written.bytes as f64 / 1e6 / written.seconds,
        })
    }

    fn end(self) -> Result<()> {
        self.guest.pull_the_plug()
    }
}

impl Stage<'_> {
    /// Root and payload disk, as every guest has them.
    fn media(&self, image: &ImageName) -> Result<[Medium<'static>; 2]> {
        let root = self.bed.image(image)?.root.clone();
        let payload = self.bed.setup().payload.clone();
        Ok([Medium::File(root), Medium::File(payload)])
    }
}

/// A file of holes, of the size of a disk.
fn sparse(path: &Path) -> Result<PathBuf> {
    let file = File::create_new(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(DISK_BYTES)
        .with_context(|| format!("give {} its size", path.display()))?;
    Ok(path.to_owned())
}

/// Hands qemu-nbd a socket that listens already, as systemd does
/// (sd_listen_fds(3)): nothing to wait for, and no name on the filesystem.
const ACTIVATE: &str = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";

fn serve_with(program: &Path, file: &Path, log: &Path) -> Result<(Child, UnixStream)> {
    let name = format!("plugpull-bench-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).context("name qemu-nbd's socket")?;
    let listener = UnixListener::bind_addr(&address).context("listen for qemu-nbd")?;
    let stream = UnixStream::connect_addr(&address).context("connect to qemu-nbd")?;
    let log = File::create(log).with_context(|| format!("make {}", log.display()))?;
    let child = Cmd::new("/bin/sh")
        .args(["-c", ACTIVATE, "sh"])
        .arg(program)
        .args(["--format=raw", "--cache=writeback", "--aio=threads"])
        .arg(file)
        .stdin_file(File::from(OwnedFd::from(listener)))
        .stderr_file(log)
        .spawn()?;
    Ok((child, stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_against_the_raw_file() {
        let kinds = [Kind::Recorder, Kind::RawFile, Kind::QemuNbd];
        let results = [vec![80.0, 90.0], vec![100.0, 100.0], vec![75.0, 75.0]];
        let group = group(&LOADS[0], &kinds, &results);
        let names: Vec<_> = group.figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(
            names[3..],
            ["cost of recording disk (NBD)", "cost of qemu-nbd, raw file"]
        );
        let ours = &group.figures[3];
        assert_eq!(ours.goal.map(|goal| goal.met), Some(true));
        assert_eq!(group.figures[4].goal, None);
        // Without qemu-nbd its column is left out, not filled with something.
        let two = super::group(&LOADS[0], &kinds[..2], &results[..2]);
        assert_eq!(two.figures.len(), 3);
    }
}
