//! One client: reads its requests, checks them, and has them recorded and queued.

use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::device::{Disk, DiskError, Job, Request};
use crate::log::Operation;
use crate::nbd::handshake::{Outcome, negotiate};
use crate::nbd::protocol::{
    CMD_DISC, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, EINVAL, ENOSPC, EPERM, MAX_PAYLOAD, RequestHead,
};
use crate::units::SECTOR_BYTES;

/// How many requests of one client may be under way; a client that sends more waits. QEMU's
/// client sends 16 at most.
const MAX_UNDER_WAY: usize = 256;

/// How much is read from the socket at once: several small writes, or a good piece of a large one.
const READ_BUFFER: usize = 256 << 10;

/// The executor's side of a client.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    under_way: Mutex<usize>,
    fewer: Condvar,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Client {
        Client {
            stream,
            under_way: Mutex::new(0),
            fewer: Condvar::new(),
        }
    }

    /// Waits for a place. No deadline: the executor frees places until the last reader is gone,
    /// and a stopping server breaks the one thing it can hang on, the client's socket.
    fn enter(&self) {
        let under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut under_way = self
            .fewer
            .wait_while(under_way, |count| *count >= MAX_UNDER_WAY)
            .unwrap_or_else(PoisonError::into_inner);
        *under_way += 1;
    }

    /// Gives a place back.
    pub(super) fn leave(&self) {
        *self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner) -= 1;
        self.fewer.notify_one();
    }

    /// Breaks the connection, for both directions and whoever waits on it.
    pub(super) fn disconnect(&self) {
        // It may be broken already, which is what is wanted.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// What the executor is to do for a client.
pub(super) struct Work {
    pub(super) client: Arc<Client>,
    pub(super) cookie: u64,
    pub(super) task: Task,
}

pub(super) enum Task {
    Execute(Job),
    /// The request was refused; it stands in the queue so that one thread alone writes answers.
    Refuse {
        error: u32,
    },
}

/// Serves one client until it leaves.
///
/// # Errors
/// The client broke the protocol or the connection.
pub(super) fn serve(disk: &Disk, client: &Arc<Client>, queue: &Sender<Work>) -> Result<()> {
    let stream = &client.stream;
    let mut input = BufReader::with_capacity(READ_BUFFER, stream);
    if negotiate(disk, &mut input, &mut &*stream)? == Outcome::Goodbye {
        return Ok(());
    }
    let mut payload = Vec::new();
    while let Some(head) = next_request(&mut input)? {
        if head.command == CMD_DISC {
            return Ok(());
        }
        client.enter();
        let work = |task| Work {
            client: client.clone(),
            cookie: head.cookie,
            task,
        };
        let enqueue = |task| {
            // The executor lives as long as any sender, so this cannot fail.
            let _ = queue.send(work(task));
        };
        match check(disk, &head) {
            Err(error) => {
                if head.command == CMD_WRITE {
                    discard(&mut input, u64::from(head.length))?;
                }
                disk.note_rejected();
                enqueue(Task::Refuse { error });
            }
            Ok(request) => {
                payload.resize(payload_bytes(&head), 0);
                input
                    .read_exact(&mut payload)
                    .context("read the data of a write")?;
                match disk.submit(request, &payload, |job| enqueue(Task::Execute(job))) {
                    Ok(()) => {}
                    Err(DiskError::Finished) => return Ok(()),
                    Err(DiskError::Cut(_) | DiskError::LogFailed(_)) => {
                        return fall_silent(&mut input);
                    }
                    Err(error @ DiskError::NotRecording) => return Err(error.into()),
                }
            }
        }
    }
    Ok(())
}

/// The next request's fixed part; `None` when the client has left between two requests.
fn next_request(input: &mut impl Read) -> Result<Option<RequestHead>> {
    let mut bytes = [0; RequestHead::BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => bail!("the client left inside a request"),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read a request"),
        }
    }
    match RequestHead::decode(&bytes) {
        Some(head) => Ok(Some(head)),
        None => bail!("no request begins with {:02x?}", &bytes[..4]),
    }
}

fn payload_bytes(head: &RequestHead) -> usize {
    if head.command == CMD_WRITE {
        head.length as usize
    } else {
        0
    }
}

/// The request, if it is one that this disk can carry out; else the error to answer with.
fn check(disk: &Disk, head: &RequestHead) -> Result<Request, u32> {
    let operation = match head.command {
        CMD_READ => None,
        CMD_WRITE => Some(Operation::Write),
        CMD_FLUSH => Some(Operation::Flush),
        CMD_TRIM => Some(Operation::Trim),
        CMD_WRITE_ZEROES => Some(Operation::WriteZeroes),
        _ => return Err(EINVAL),
    };
    let known_flags = match operation {
        Some(Operation::WriteZeroes) => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE,
        _ => CMD_FLAG_FUA,
    };
    if head.flags & !known_flags != 0 {
        return Err(EINVAL);
    }
    if disk.is_read_only() && operation.is_some() {
        return Err(EPERM);
    }
    if operation == Some(Operation::Flush) {
        if head.offset != 0 || head.length != 0 {
            return Err(EINVAL);
        }
    } else {
        check_range(disk, head, operation)?;
    }
    Ok(match operation {
        None => Request::Read {
            offset: head.offset,
            length: head.length,
        },
        Some(operation) => Request::Change {
            operation,
            offset: head.offset,
            length: head.length,
            fua: head.flags & CMD_FLAG_FUA != 0 && operation != Operation::Flush,
        },
    })
}

/// The protocol wants ENOSPC for what would store beyond the end, and EINVAL for the rest.
fn check_range(disk: &Disk, head: &RequestHead, operation: Option<Operation>) -> Result<(), u32> {
    let length = u64::from(head.length);
    let end = head.offset.checked_add(length);
    if end.is_none_or(|end| end > disk.size().0) {
        return Err(match operation {
            Some(Operation::Write | Operation::WriteZeroes) => ENOSPC,
            _ => EINVAL,
        });
    }
    let carries_data = matches!(operation, None | Some(Operation::Write));
    let too_long = carries_data && head.length > MAX_PAYLOAD;
    let aligned = head.offset.is_multiple_of(SECTOR_BYTES) && length % SECTOR_BYTES == 0;
    if too_long || !aligned || length == 0 {
        return Err(EINVAL);
    }
    Ok(())
}

fn discard(input: &mut impl Read, bytes: u64) -> Result<()> {
    let discarded = io::copy(&mut input.take(bytes), &mut io::sink())?;
    if discarded < bytes {
        bail!("the client left inside the data of a write");
    }
    Ok(())
}

/// What a device without power does: it takes what comes, says nothing, and does not hang up, for
/// a broken connection would be an answer.
fn fall_silent(input: &mut impl Read) -> Result<()> {
    io::copy(input, &mut io::sink())?;
    Ok(())
}
