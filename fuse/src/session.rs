//! The handshake, and the threads that read requests and hand them on.
//!
//! Why not fuser's loop: it cannot express O_TMPFILE, STATX and the flags of
//! `HANDLE_KILLPRIV_V2` and `SETXATTR_EXT`, hands out times before 1970 wrongly,
//! and reads into 16 MiB per thread. What the difference is in time stands in
//! docs/figures.md.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use rustix::io::Errno;
use rustix::thread::Pid;
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::abi::{self, InitOut, init, opcode};
use crate::device::{Buffer, Device};
use crate::readers::{Call, Pace, Readers};
use crate::reply::Reply;
use crate::request::{Malformed, Operation, Request};
use crate::uring::{self, End, Lane};

/// What the kernel offers in INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The kernel's minor version of the protocol.
    pub minor: u32,
    /// Bits of [`crate::abi::init`].
    pub flags: u64,
    /// The most that it would read ahead, in bytes.
    pub max_readahead: u32,
}

/// What a filesystem wants in answer to an [`Offer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Bits of [`crate::abi::init`]; those that were not offered are left out.
    pub flags: u64,
    /// How many requests nobody waits for may be under way: write-back, read-ahead, RELEASE.
    pub max_background: u16,
    /// The most data of one request, in bytes.
    pub max_write: u32,
    /// How deep the stack of filesystems may be on which the files of
    /// `PASSTHROUGH` lie, this one included; 0 without it.
    pub max_stack_depth: u32,
}

/// Why a session could not begin or went wrong.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Reading from or writing to the connection failed.
    #[error("{doing}: {error}")]
    Device {
        /// What was being done.
        doing: &'static str,
        /// What the device said.
        error: Errno,
    },
    /// Something else than INIT came first.
    #[error("the kernel's first message is no INIT: {0}")]
    NoInit(String),
    /// A kernel from before Linux 5.4.
    #[error("the kernel speaks FUSE {major}.{minor}; 7.{OLDEST} or later is needed", OLDEST = abi::OLDEST_MINOR)]
    Version {
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// A queue of io_uring could not be served.
    #[error("serve queue {queue} of io_uring: {error}")]
    Uring {
        /// The number of the queue, which is that of a processor.
        queue: u16,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// No thread could be started.
    #[error("start a dispatch thread: {0}")]
    Thread(std::io::Error),
}

/// A program that answers requests. Called from several threads at once.
pub trait Filesystem: Send + Sync + 'static {
    /// Chooses what to use of what the kernel offers. Called once, before all else.
    fn init(&mut self, offer: &Offer) -> Wanted;

    /// Answers one request.
    fn serve(&self, request: &Request<'_>, reply: Reply<'_>);

    /// Takes back `lookups` lookups of a node. Nobody waits for it.
    fn forget(&self, node: u64, lookups: u64);
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Session<F> {
    shared: Arc<Shared<F>>,
}

#[derive(Debug)]
struct Shared<F> {
    device: Device,
    fs: F,
    max_write: u32,
    setxattr_ext: bool,
    /// How many queues of io_uring there are; 0 when all requests come through the device.
    queues: u16,
}

impl<F: Filesystem> Session<F> {
    /// Answers the kernel's INIT.
    ///
    /// # Errors
    /// [`SessionError`], when the kernel is too old or sends something else.
    pub fn new(device: Device, mut fs: F) -> Result<Self, SessionError> {
        let mut buffer = Buffer::new(abi::InitIn::default().as_bytes().len() as u32);
        let (unique, answer) = loop {
            let message = device
                .receive(&mut buffer)
                .map_err(device_error("read INIT"))?;
            let request = Request::parse(message, false)
                .map_err(|malformed| SessionError::NoInit(malformed.to_string()))?;
            let Operation::Init(offered) = request.operation else {
                return Err(SessionError::NoInit(format!("{:?}", request.operation)));
            };
            let unique = request.header.unique;
            if offered.major > abi::MAJOR {
                // The kernel lowers itself to our major and asks again.
                let ours = InitOut {
                    major: abi::MAJOR,
                    minor: abi::MINOR,
                    ..InitOut::default()
                };
                device
                    .answer(unique, 0, &[ours.as_bytes()])
                    .map_err(device_error("answer INIT"))?;
                continue;
            }
            if offered.major < abi::MAJOR || offered.minor < abi::OLDEST_MINOR {
                let _ended = device.answer(unique, libc::EPROTO, &[]);
                return Err(SessionError::Version {
                    major: offered.major,
                    minor: offered.minor,
                });
            }
            let offer = Offer {
                minor: offered.minor,
                flags: u64::from(offered.flags) | u64::from(offered.flags2) << 32,
                max_readahead: offered.max_readahead,
            };
            let wanted = fs.init(&offer);
            let wanted = without_useless_uring(wanted, &offer);
            break (unique, answer_to(&offer, wanted));
        };
        device
            .answer(unique, 0, &[answer.as_bytes()])
            .map_err(device_error("answer INIT"))?;
        let shared = Shared {
            device,
            fs,
            max_write: answer.max_write,
            setxattr_ext: u64::from(answer.flags) & init::SETXATTR_EXT != 0,
            queues: if u64::from(answer.flags2) << 32 & init::OVER_IO_URING != 0 {
                uring::queues().unwrap_or_default()
            } else {
                0
            },
        };
        Ok(Session {
            shared: Arc::new(shared),
        })
    }

    /// The filesystem.
    #[must_use]
    pub fn filesystem(&self) -> &F {
        &self.shared.fs
    }

    /// Whether requests come over io_uring.
    #[must_use]
    pub fn is_over_io_uring(&self) -> bool {
        self.shared.queues > 0
    }

    /// Answers requests in up to `most_threads` threads until the filesystem is
    /// unmounted. Over io_uring each processor has as many of its own as its share, at
    /// least four of them, or `most_threads` if that is less.
    ///
    /// # Errors
    /// What made a thread give up; the others are then still at work, and end with the process.
    pub fn run(&self, most_threads: usize) -> Result<(), SessionError> {
        let (ended, ends) = channel();
        let threads = Threads {
            shared: Arc::clone(&self.shared),
            readers: Arc::new(Readers::new(most_threads, processors())),
            ended,
        };
        // Until each queue has its lane, the kernel holds all requests back.
        for queue in 0..self.shared.queues {
            for _ in 0..lanes(most_threads, self.shared.queues) {
                threads.start_lane(queue).map_err(SessionError::Thread)?;
            }
        }
        for _ in 0..threads.readers.first() {
            threads.start().map_err(SessionError::Thread)?;
        }
        let watch = thread::Builder::new()
            .name("fuse-watch".into())
            .spawn(move || threads.watch())
            .map_err(SessionError::Thread)?;
        let ended: Result<(), SessionError> = ends.into_iter().collect();
        if ended.is_ok() {
            // It ends when the first of the others does.
            let _ended = watch.join();
        }
        ended
    }
}

/// What a dispatch thread knows, and hands on to those that it starts.
#[derive(Debug)]
struct Threads<F> {
    shared: Arc<Shared<F>>,
    readers: Arc<Readers>,
    ended: Sender<Result<(), SessionError>>,
}

impl<F: Filesystem> Threads<F> {
    fn start(&self) -> std::io::Result<()> {
        let own = Threads {
            shared: Arc::clone(&self.shared),
            readers: Arc::clone(&self.readers),
            ended: self.ended.clone(),
        };
        thread::Builder::new().name("fuse".into()).spawn(move || {
            let result = own.dispatch();
            own.readers.end();
            // Nobody listens any more after the first error.
            let _unheard = own.ended.send(result);
        })?;
        self.readers.started();
        Ok(())
    }

    /// Starts a thread that serves a queue of io_uring.
    fn start_lane(&self, queue: u16) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let ended = self.ended.clone();
        let name = format!("fuse-{queue}");
        thread::Builder::new().name(name).spawn(move || {
            // Nobody listens any more after the first error.
            let _unheard = ended.send(shared.serve_queue(queue));
        })?;
        Ok(())
    }

    /// Starts threads that slow requests make necessary, until the session ends.
    fn watch(self) {
        let Threads { ref readers, .. } = self;
        while readers.watch(is_running) == Call::NewThread {
            self.start_one_more();
        }
    }

    fn start_one_more(&self) {
        if let Err(error) = self.start() {
            // Those that run go on; it is only slower.
            tracing::warn!(%error, "cannot start another dispatch thread");
        }
    }

    fn dispatch(&self) -> Result<(), SessionError> {
        let shared = &self.shared;
        self.readers.begin();
        let mut buffer = Buffer::new(shared.max_write);
        let mut pace = Pace::default();
        loop {
            let message = self
                .readers
                .wait(&mut pace, || shared.device.receive(&mut buffer));
            match message {
                Ok(message) => self.handle(message, &mut pace),
                // Unmounted; a thread that has just taken a request when the connection
                // ends is told ECONNABORTED, the others ENODEV (fuse_dev_do_read in
                // fs/fuse/dev.c).
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
                Err(error) => {
                    return Err(SessionError::Device {
                        doing: "read a request",
                        error,
                    });
                }
            }
            if !self.readers.answered(&mut pace) {
                return Ok(());
            }
        }
    }

    fn handle(&self, message: &[u8], pace: &mut Pace) {
        match Request::parse(message, self.shared.setxattr_ext) {
            Ok(request) => {
                let slow = is_slow(&request.operation);
                let is_more = || self.shared.device.is_ready();
                if self.readers.taken(pace, slow, is_more) == Call::NewThread {
                    self.start_one_more();
                }
                let reply = || Reply::new(&self.shared.device, request.header.unique);
                self.shared.serve(&request, reply);
            }
            Err(malformed) => refuse(&self.shared.device, message, malformed),
        }
    }
}

/// Whether a thread of this process is on a processor or ready for one: state R in
/// proc_pid_stat(5). Of one that cannot be asked it is not known, so it is not said.
fn is_running(thread: Pid) -> bool {
    let path = format!("/proc/self/task/{thread}/stat");
    let stat = std::fs::read_to_string(path).unwrap_or_default();
    // The name before it may hold anything.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('R'))
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Whether a request is known to wait for a disk.
fn is_slow(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Fsync { .. }
        | Operation::Fsyncdir { .. }
        | Operation::Syncfs
        | Operation::Fallocate(_)
        | Operation::CopyFileRange { .. } => true,
        Operation::Write { arg, .. } => arg.flags.cast_signed() & libc::O_SYNC != 0,
        _ => false,
    }
}

impl<F: Filesystem> Shared<F> {
    /// Answers the requests of one queue of io_uring until the session ends.
    fn serve_queue(&self, queue: u16) -> Result<(), SessionError> {
        let failed = |error| SessionError::Uring { queue, error };
        let mut lane = Lane::new(&self.device, queue, self.max_write as usize).map_err(failed)?;
        let answer = RefCell::default();
        loop {
            let message = match lane.next(&answer.borrow()) {
                Ok(message) => message,
                Err(End::Session) => return Ok(()),
                Err(End::Refused(error)) => {
                    tracing::warn!(%error, "no requests over io_uring");
                    return Ok(());
                }
                Err(End::Broken(error)) => return Err(failed(error.into())),
            };
            // What nobody answers must not get the answer of the request before.
            answer.borrow_mut().refuse(Errno::IO);
            match Request::parse(message, self.setxattr_ext) {
                Ok(request) => {
                    let unique = request.header.unique;
                    let reply = || Reply::keep(&self.device, unique, &answer);
                    self.serve(&request, reply);
                }
                Err(malformed) => {
                    tracing::error!(%malformed, "the kernel sent what is no request");
                }
            }
        }
    }

    fn serve<'a>(&'a self, request: &Request<'_>, reply: impl FnOnce() -> Reply<'a>) {
        let header = request.header;
        match request.operation {
            Operation::Forget { lookups } => self.fs.forget(header.nodeid, lookups),
            Operation::BatchForget { nodes } => {
                for node in nodes {
                    self.fs.forget(node.nodeid, node.nlookup);
                }
            }
            // Nothing here waits for anything but a disk, which no signal interrupts.
            Operation::Interrupt { .. } => reply().error(Errno::NOSYS),
            Operation::Destroy => reply().ok(),
            _ => self.fs.serve(request, reply()),
        }
    }
}

/// How many threads serve each queue of io_uring.
fn lanes(most_threads: usize, queues: u16) -> usize {
    let share = most_threads.div_ceil(usize::from(queues.max(1)));
    share.max(most_threads.min(4)).max(1)
}

/// Wants io_uring only where this process can do its part: once it is agreed upon, there is
/// no way back.
fn without_useless_uring(mut wanted: Wanted, offer: &Offer) -> Wanted {
    if wanted.flags & offer.flags & init::OVER_IO_URING == 0 {
        return wanted;
    }
    let reason = match (uring::queues(), uring::probe()) {
        (Some(_), Ok(())) => return wanted,
        (None, _) => "the number of processors is unknown".to_owned(),
        (_, Err(error)) => error.to_string(),
    };
    tracing::warn!(reason, "no requests over io_uring");
    wanted.flags &= !init::OVER_IO_URING;
    wanted
}

/// What INIT is answered.
fn answer_to(offer: &Offer, wanted: Wanted) -> InitOut {
    let always = init::BIG_WRITES | init::MAX_PAGES | init::INIT_EXT | init::ABORT_ERROR;
    let flags = (wanted.flags | always) & offer.flags;
    let pages = wanted.max_write.div_ceil(4096);
    InitOut {
        major: abi::MAJOR,
        minor: abi::MINOR.min(offer.minor),
        max_readahead: offer.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: wanted.max_background,
        congestion_threshold: wanted.max_background / 4 * 3,
        max_write: wanted.max_write,
        time_gran: 1,
        max_pages: u16::try_from(pages).unwrap_or(u16::MAX),
        max_stack_depth: wanted.max_stack_depth,
        ..InitOut::default()
    }
}

/// What cannot be read cannot be served, but whoever asked must not hang.
fn refuse(device: &Device, message: &[u8], malformed: Malformed) {
    tracing::error!(%malformed, "the kernel sent what is no request");
    let Ok((header, _)) = <abi::InHeader as zerocopy::FromBytes>::read_from_prefix(message) else {
        return;
    };
    // Nobody waits for the answer to a FORGET, and the kernel refuses one.
    if !matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
        let _gone = device.answer(header.unique, libc::EIO, &[]);
    }
}

fn device_error(doing: &'static str) -> impl FnOnce(Errno) -> SessionError {
    move |error| SessionError::Device { doing, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_is_not_running() {
        assert!(is_running(rustix::thread::gettid()));
        let (tell, told) = channel();
        let (go, wait) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                tell.send(rustix::thread::gettid()).unwrap();
                wait.recv().unwrap();
            });
            let waiting = told.recv().unwrap();
            let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while is_running(waiting) {
                assert!(std::time::Instant::now() < end, "it still runs");
                thread::yield_now();
            }
            go.send(()).unwrap();
        });
    }
}
