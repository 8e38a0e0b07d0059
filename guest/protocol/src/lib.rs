//! The messages between guest and host, and nothing else.
//!
//! Messages are JSON behind a little-endian `u32` length, at most
//! [`frame::MAX_LEN`] bytes. Two byte streams (virtio-serial ports, one per
//! direction) carry them: [`ToHost`] from the guest, [`ToGuest`] from the host.
//! Bulk data never travels here: it goes on disks.
//!
//! The first message is the guest's [`Hello`]. A host that does not know the
//! version or the build hangs up, because a guest binary of another build has
//! other workloads under the same names.

pub mod frame;
pub mod syncs;
pub mod workload;

use serde::{Deserialize, Serialize};

pub use workload::{Observation, WorkloadRequest};

/// Version of this protocol; both sides refuse another.
pub const VERSION: u32 = 1;

/// Name of the virtio-serial port that carries [`ToHost`].
pub const PORT_TO_HOST: &str = "plugpull.to-host";

/// Name of the virtio-serial port that carries [`ToGuest`].
pub const PORT_TO_GUEST: &str = "plugpull.to-guest";

/// What the guest says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`] of the guest's protocol.
    pub version: u32,
    /// Hash of the guest binary, as the host put it on the kernel command line.
    pub build: String,
    /// `uname -r` of the guest.
    pub kernel: String,
}

/// How far a guest has come; the host names it when a guest hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// QEMU runs, the kernel has printed nothing yet.
    Firmware,
    /// The kernel has printed something.
    Kernel,
    /// Our init runs: modules, root disk.
    Init,
    /// The agent answers on the channel.
    Agent,
    /// A scenario's request is being carried out.
    Scenario,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Firmware => "firmware",
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Agent => "agent",
            Self::Scenario => "scenario",
        })
    }
}

/// From the guest to the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToHost {
    /// The first message on the stream.
    Hello(Hello),
    /// The answer to the [`ToGuest::Request`] with the same id.
    Reply {
        /// The request's id.
        id: u64,
        /// What came of it.
        result: Result<Reply, Failure>,
    },
    /// Something a workload says about its promises. The host records its
    /// place among the disk's requests, then answers [`ToGuest::Recorded`].
    Promise {
        /// Chosen by the guest, unique on this stream.
        id: u64,
        /// What is said.
        event: Promise,
    },
}

/// From the host to the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToGuest {
    /// Something to do. Requests are answered in any order.
    Request {
        /// Chosen by the host, unique on this stream.
        id: u64,
        /// What to do.
        request: Request,
    },
    /// Several things to do one after the other, answered one by one. When one
    /// fails, those after it are not begun and fail as well.
    InOrder {
        /// The id of the first; the others have those after it.
        first: u64,
        /// What to do.
        requests: Vec<Request>,
    },
    /// The promise with this id has its place in the ledger.
    Recorded {
        /// The promise's id.
        id: u64,
    },
}

/// A line of the ledger, as a workload says it.
///
/// A promise is recorded late or not at all, never early: `Begin` is awaited
/// *before* the operation is issued, `Ack` and `Served` are sent *after* the
/// program under test gave its word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Promise {
    /// About to be attempted; without a value: removal.
    Begin {
        /// Which of the workload's connections says it; `ack` refers to the
        /// latest `begin` of the key on the same connection.
        conn: u32,
        /// What is written.
        key: String,
        /// The value it gets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// The program under test promises the latest `begin` of the key.
    Ack {
        /// The connection that began it.
        conn: u32,
        /// What was written.
        key: String,
    },
    /// A reader was given this value.
    Served {
        /// What was read.
        key: String,
        /// What the reader got.
        value: String,
    },
    /// A place in the run worth naming; a cut point of its own.
    Mark {
        /// Its name.
        text: String,
    },
    /// The workload said something that is no promise. It is recorded like
    /// one, so that no ledger can be made of such a run, whatever happens next.
    Garbled {
        /// What was wrong with it.
        why: String,
    },
}

/// Something the guest is asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Answer [`Reply::Done`].
    Ping,
    /// Make a filesystem on a disk, with the guest's own mkfs.
    Mkfs {
        /// The disk.
        device: Device,
        /// `ext4`, `xfs`, `btrfs`.
        fs: String,
        /// Further arguments to mkfs.
        args: Vec<String>,
    },
    /// Check an unmounted filesystem with its own tool, changing nothing.
    Fsck {
        /// The disk.
        device: Device,
        /// `ext4`, `xfs`, `btrfs`.
        fs: String,
        /// Killed after this time.
        timeout_ms: u64,
    },
    /// Mount a block device's filesystem.
    Mount {
        /// The disk.
        device: Device,
        /// Its filesystem.
        fs: String,
        /// Mount options, comma separated; may be empty.
        options: String,
        /// Where; made if missing.
        at: String,
    },
    /// Start a filesystem server in the foreground and wait until its mount
    /// point is a FUSE mount. Its standard error is kept and reported when it
    /// ends or fails.
    Serve {
        /// Program and arguments; `{device}` in one stands for the disk's node.
        argv: Vec<String>,
        /// The disk that a server of a block device takes.
        device: Device,
        /// Where it mounts; made if missing.
        at: String,
        /// How long the mount may take to appear.
        timeout_ms: u64,
    },
    /// Unmount; where a server mounted it, wait for the server to exit and
    /// report its status.
    Unmount {
        /// The mount point.
        at: String,
        /// How long the server may take to exit.
        timeout_ms: u64,
    },
    /// Forget every cached block of an unmounted disk (BLKFLSBUF), so that its
    /// content can be swapped.
    FlushDevice {
        /// The disk.
        device: Device,
    },
    /// Have blocks of an unmounted disk read into its cache, all at once, so that
    /// a filesystem that is about to be mounted need not wait for one after the
    /// other. They are kept until [`Request::FlushDevice`].
    ReadAhead {
        /// The disk.
        device: Device,
        /// The unit in which the filesystem will read: the cache is dropped
        /// when it changes.
        block_bytes: u32,
        /// First byte and length of each stretch.
        stretches: Vec<(u64, u64)>,
    },
    /// Set how the block layer sees the disk's write cache
    /// (`queue/write_cache`): `write back` or `write through`.
    SetWriteCache {
        /// The disk.
        device: Device,
        /// True for `write back`.
        volatile: bool,
    },
    /// Note from here on, before each promise, which calls have asked these
    /// mounts for durability: see [`syncs`].
    WatchSyncs {
        /// The disk, for what the block layer takes it for.
        device: Device,
        /// The mount point of the lower filesystem.
        lower: String,
        /// The mount point that programs see; the same where nothing is
        /// mounted over it.
        mount: String,
    },
    /// Attach the run's payload disk and mount it read-only at `/mnt/payload`.
    AttachPayload,
    /// Put a table on a device-mapper device: made, or swapped with
    /// `--nolockfs` where it exists.
    DmTable {
        /// Name below `/dev/mapper`.
        name: String,
        /// The table, one line per target; `{device}` stands for the disk and
        /// `{sectors}` for its size in 512-byte sectors.
        table: String,
        /// The disk below.
        device: Device,
    },
    /// Remove a device-mapper device.
    DmRemove {
        /// Its name.
        name: String,
    },
    /// Start counting requests that complete with an error on a device, by the
    /// tracepoint `block:block_bio_complete`.
    CountErrors {
        /// The device.
        device: Device,
    },
    /// Read that count and stop counting.
    CountedErrors,
    /// Run a program to its end.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Set beside the agent's own environment.
        env: Vec<(String, String)>,
        /// Run as this user id (and group id); root when absent.
        uid: Option<u32>,
        /// Killed, with its whole process group, after this time.
        timeout_ms: u64,
    },
    /// Run an interactive shell on the serial console until it ends;
    /// answered with [`Reply::Exited`], whose output is empty: it went to the
    /// console.
    Console {
        /// `TERM` of the host's terminal.
        term: String,
        /// Its height in characters.
        rows: u16,
        /// Its width in characters.
        columns: u16,
        /// Where the shell starts.
        dir: String,
    },
    /// End that shell, and all processes of its session, as a terminal whose
    /// line drops does: with SIGHUP, and with SIGKILL what ignores it. Answered
    /// when they have ended.
    HangUp,
    /// A built-in workload or checker.
    Workload(WorkloadRequest),
    /// Write everything back and power off.
    PowerOff,
    /// Crash the kernel (`sysrq c`); for the controls of the console watch.
    Panic,
    /// Never answer; for the controls of the hang detection.
    Hang,
}

/// A disk or device-mapper device, by a name that does not race.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// A virtio, nvme or scsi disk by its serial.
    Serial(String),
    /// A device-mapper device by its name.
    Mapper(String),
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done; nothing more to say.
    Done,
    /// A program ran to its end.
    Exited(Exited),
    /// How many requests ended with an error.
    Errors {
        /// Requests counted.
        count: u64,
    },
    /// What a built-in workload or checker saw.
    Observed(Observation),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// The last 64 KiB of standard output, lossily decoded.
    pub stdout: String,
    /// The last 64 KiB of standard error, lossily decoded.
    pub stderr: String,
    /// Wall time.
    pub elapsed_ms: u64,
}

impl Exited {
    /// How much of each stream is kept, in bytes.
    pub const TAIL_BYTES: usize = 64 << 10;

    /// True when the program exited with 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

/// Why a request could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was attempted and what went wrong, outermost first.
    pub message: String,
    /// The errno below it, where there is one.
    pub errno: Option<i32>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
