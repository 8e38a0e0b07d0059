//! Requests over io_uring instead of `/dev/fuse` (`FUSE_OVER_IO_URING`, Linux 6.14).
//!
//! The kernel has a queue of requests for each possible processor, and puts a request into
//! that of the processor on which the client runs. A [`Lane`] is one thread's place
//! at one queue: one system call gives the answer to the last request and waits for
//! the next. The thread stays on the queue's processor, so a client that waits for it
//! is woken where it slept, and nothing is shared with the clients of other processors.
//!
//! The kernel gives a request to the lane that came last, so the others of a queue sleep
//! until that one is slow: none has to be called or parked.
//!
//! Only requests with answers come this way; FORGET and INTERRUPT still come through the
//! device.
//!
//! Source: fs/fuse/dev_uring.c and include/uapi/linux/fuse.h of Linux 6.18.
#![expect(
    unsafe_code,
    reason = "the kernel writes to memory whose address was registered"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{InHeader, OutHeader, UringCmdReq, UringEntInOut};
use crate::device::Device;
use crate::pages::{PAGE_BYTES, Pages};
use crate::reply::Answer;

/// `FUSE_IO_URING_CMD_REGISTER` and the other one.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// `struct fuse_uring_req_header`: the header of the request or answer, the fixed part of
/// the request's argument, and what travels beside them.
const HEADER_PART: usize = 128;
const ARGUMENT_PART: usize = 128;
const BESIDE_AT: usize = HEADER_PART + ARGUMENT_PART;

/// In the memory of a lane the headers are at the start, and the payload begins here.
const PAYLOAD_AT: usize = PAGE_BYTES;

/// Where `len` is in `struct io_uring_sqe` (include/uapi/linux/io_uring.h).
const SQE_LEN_AT: usize = 24;

type Ring = IoUring<Entry128, cqueue::Entry>;

fn ring() -> io::Result<Ring> {
    IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(2)
}

/// Whether this process may use io_uring as it is needed here.
///
/// # Errors
/// EPERM where `kernel.io_uring_disabled` forbids it, ENOSYS without it, ENOMEM.
pub(crate) fn probe() -> io::Result<()> {
    ring().map(drop)
}

/// How many queues there are: as many as processors may ever be plugged in
/// (`num_possible_cpus`).
pub(crate) fn queues() -> Option<u16> {
    parse_ranges(&std::fs::read_to_string("/sys/devices/system/cpu/possible").ok()?)
}

/// The number of processors in a list such as `0-3,8` (cpuset(7), "List format").
fn parse_ranges(list: &str) -> Option<u16> {
    list.trim().split(',').try_fold(0_u16, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// One thread's place at a queue.
pub(crate) struct Lane {
    ring: Ring,
    device: types::Fd,
    queue: u16,
    memory: Pages,
    is_registered: bool,
}

/// What [`Lane::next`] waits for came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Unmounted or aborted.
    Session,
    /// The kernel refused this lane; requests come through the device then.
    Refused(Errno),
    /// What should not happen.
    Broken(Errno),
}

impl Lane {
    /// A place of the calling thread at this queue, with room for `max_payload` bytes.
    ///
    /// # Errors
    /// Those of io_uring_setup(2).
    pub(crate) fn new(device: &Device, queue: u16, max_payload: usize) -> io::Result<Self> {
        stay_on(queue);
        Ok(Lane {
            ring: ring()?,
            device: types::Fd(device.as_fd().as_raw_fd()),
            queue,
            memory: Pages::new(1 + max_payload.div_ceil(PAGE_BYTES)),
            is_registered: false,
        })
    }

    /// Gives `answer` to the last request, if there was one, and waits for the next; returns
    /// its bytes as the device would give them.
    pub(crate) fn next(&mut self, answer: &Answer) -> Result<&[u8], End> {
        if self.is_registered {
            let commit_id = self.put(answer);
            self.submit(COMMIT_AND_FETCH, commit_id, std::ptr::null())?;
        } else {
            let parts = [
                libc::iovec {
                    iov_base: self.memory.address().cast(),
                    iov_len: PAYLOAD_AT,
                },
                libc::iovec {
                    iov_base: self.memory.address().wrapping_add(PAYLOAD_AT).cast(),
                    iov_len: self.memory.bytes().len() - PAYLOAD_AT,
                },
            ];
            // The kernel reads the list when it takes the command, before this returns.
            self.submit(REGISTER, 0, parts.as_ptr())?;
            self.is_registered = true;
        }
        self.take()
    }

    /// Gives the kernel one command, and waits for its end.
    fn submit(
        &mut self,
        command: u32,
        commit_id: u64,
        parts: *const libc::iovec,
    ) -> Result<(), End> {
        let request = UringCmdReq {
            commit_id,
            qid: self.queue,
            ..UringCmdReq::default()
        };
        let mut bytes = [0; 80];
        bytes[..size_of::<UringCmdReq>()].copy_from_slice(request.as_bytes());
        let mut entry = opcode::UringCmd80::new(self.device, command)
            .cmd(bytes)
            .addr((!parts.is_null()).then_some(parts as u64))
            .build();
        if !parts.is_null() {
            // SAFETY: an entry has the layout of `struct io_uring_sqe`, 128 bytes, and this
            // is its aligned field `len`, for which the library has no name here.
            unsafe {
                (&raw mut entry)
                    .cast::<u8>()
                    .add(SQE_LEN_AT)
                    .cast::<u32>()
                    .write(2);
            }
        }
        // SAFETY: the descriptor and the memory are there as long as this lane and its
        // ring are, and nobody looks at the memory until the command has ended.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| End::Broken(Errno::BUSY))?;
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    return Err(End::Broken(error));
                }
            }
            let Some(completed) = self.ring.completion().next() else {
                continue;
            };
            return match completed.result() {
                0.. => Ok(()),
                error => Err(ended(command, Errno::from_raw_os_error(-error))),
            };
        }
    }

    /// Puts the parts of the request that has arrived together.
    fn take(&mut self) -> Result<&[u8], End> {
        let memory = self.memory.bytes();
        let beside = beside(memory);
        let header = InHeader::read_from_bytes(&memory[..size_of::<InHeader>()]);
        let header = header.map_err(|_| End::Broken(Errno::INVAL))?;
        let payload = beside.payload_sz as usize;
        let fixed = (header.len as usize)
            .checked_sub(size_of::<InHeader>() + payload)
            .filter(|fixed| *fixed <= ARGUMENT_PART && PAYLOAD_AT + payload <= memory.len())
            .ok_or(End::Broken(Errno::INVAL))?;
        // Just before the payload, so that the whole is in one piece.
        let argument = PAYLOAD_AT - fixed;
        memory.copy_within(HEADER_PART..HEADER_PART + fixed, argument);
        let start = argument - size_of::<InHeader>();
        memory.copy_within(..size_of::<InHeader>(), start);
        Ok(&memory[start..PAYLOAD_AT + payload])
    }

    /// Puts the answer where the kernel looks for it; returns what tells it to which
    /// request.
    fn put(&mut self, answer: &Answer) -> u64 {
        let memory = self.memory.bytes();
        let mut beside = beside(memory);
        let (error, bytes) = match memory.get_mut(PAYLOAD_AT..PAYLOAD_AT + answer.bytes.len()) {
            Some(room) => {
                room.copy_from_slice(&answer.bytes);
                (answer.error, answer.bytes.len())
            }
            None => (libc::EOVERFLOW, 0),
        };
        let header = OutHeader {
            // The kernel counts the payload by its own field; both say the same.
            len: (size_of::<OutHeader>() + bytes) as u32,
            error: -error,
            unique: beside.commit_id,
        };
        memory[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
        beside.payload_sz = bytes as u32;
        memory[BESIDE_AT..][..size_of::<UringEntInOut>()].copy_from_slice(beside.as_bytes());
        beside.commit_id
    }
}

fn beside(memory: &[u8]) -> UringEntInOut {
    let (beside, _) = UringEntInOut::read_from_prefix(&memory[BESIDE_AT..]).unwrap_or_default();
    beside
}

/// What an error of a command means (`fuse_uring_cmd`).
fn ended(command: u32, error: Errno) -> End {
    match error {
        // Unmounted, aborted, or this process is about to end.
        Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED => End::Session,
        error if command == REGISTER => End::Refused(error),
        error => End::Broken(error),
    }
}

/// Keeps the calling thread on the processor of a queue. One that is not there now may
/// not be asked for either; the queue still needs its lane.
fn stay_on(queue: u16) {
    let mut processors = CpuSet::new();
    let number = usize::from(queue);
    if number < CpuSet::MAX_CPU {
        processors.set(number);
        if let Err(error) = sched_setaffinity(None, &processors) {
            tracing::debug!(%error, queue, "a thread runs anywhere");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(parse_ranges("0-1\n"), Some(2));
        assert_eq!(parse_ranges("0"), Some(1));
        assert_eq!(parse_ranges("0-3,8-9,12"), Some(7));
        assert_eq!(parse_ranges(""), None);
        assert_eq!(parse_ranges("3-1"), None);
    }
}
