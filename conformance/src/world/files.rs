//! Calls on open descriptors and mappings.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use rustix::fs::{
    FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, copy_file_range, fallocate,
    fcntl_getfl, fcntl_setfl, fdatasync, flock, fsync, openat, seek, syncfs,
};
use rustix::io::{
    Errno, ReadWriteFlags, fcntl_dupfd_cloexec, pread, pwrite, pwritev2, read, write,
};

use super::{DONE, World};
use crate::op::{LockKind, LockOwner, MAPS, Op, Slot, SyncKind, Whence};
use crate::outcome::{Bytes, Outcome, Value};
use crate::sys::{self, Mapping};

/// What unbuffered I/O is aligned to, in memory and in the file.
const ALIGNMENT: usize = 4096;
const PAGE: usize = 4096;
const RWF_APPEND: u32 = 0x10;

impl World {
    pub(super) fn file_call(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Open {
                slot,
                place,
                flags,
                mode,
            } => {
                let (base, name) = self.at(place)?;
                // A fifo without a peer would block for ever.
                let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let descriptor = openat(base, name, flags, Mode::from_raw_mode(mode.0))?;
                self.fill(slot, descriptor);
                DONE
            }
            Op::Close(slot) => {
                let slot = usize::from(slot) % self.slots.len();
                self.slots[slot]
                    .take()
                    .map(|_| Value::Done)
                    .ok_or(Errno::BADF)
            }
            Op::Dup { from, to } => {
                let copy = fcntl_dupfd_cloexec(self.slot(from)?, 0)?;
                self.fill(to, copy);
                DONE
            }
            Op::Read { slot, at, length } => self.read(slot, at, length),
            Op::Write {
                slot,
                at,
                length,
                fill,
            } => self.write(slot, at, length, fill),
            Op::WriteVector {
                slot,
                at,
                length,
                fill,
                flags,
            } => self.write_vector(slot, at, (length, fill), flags),
            Op::SetFlags { slot, flags } => {
                fcntl_setfl(self.slot(slot)?, flags | OFlags::NONBLOCK)?;
                DONE
            }
            Op::GetFlags(slot) => {
                let flags = fcntl_getfl(self.slot(slot)?)?;
                Ok(Value::Number(flags.bits().into()))
            }
            Op::Seek {
                slot,
                whence,
                offset,
            } => self.seek(slot, whence, offset),
            Op::Allocate {
                slot,
                mode,
                offset,
                length,
            } => {
                let mode = FallocateFlags::from_bits_retain(mode);
                fallocate(self.slot(slot)?, mode, offset, length)?;
                DONE
            }
            Op::CopyRange {
                from,
                mut from_at,
                to,
                mut to_at,
                length,
            } => {
                let (from, to) = (self.slot(from)?, self.slot(to)?);
                for file in [from, to] {
                    // See `known::DIRECT_COPIES`.
                    if fcntl_getfl(file)?.contains(OFlags::DIRECT) {
                        return Err(Errno::INVAL);
                    }
                }
                let (from_at, to_at) = (Some(&mut from_at), Some(&mut to_at));
                number(copy_file_range(from, from_at, to, to_at, length)?)
            }
            Op::Sync(slot, kind) => {
                let slot = self.slot(slot)?;
                match kind {
                    SyncKind::File => fsync(slot)?,
                    SyncKind::Data => fdatasync(slot)?,
                    SyncKind::Filesystem => syncfs(slot)?,
                }
                DONE
            }
            Op::Flock { slot, kind } => {
                let operation = match kind {
                    LockKind::Read => FlockOperation::NonBlockingLockShared,
                    LockKind::Write => FlockOperation::NonBlockingLockExclusive,
                    LockKind::Unlock => FlockOperation::NonBlockingUnlock,
                };
                flock(self.slot(slot)?, operation)?;
                DONE
            }
            Op::Lock {
                slot,
                owner,
                kind,
                start,
                length,
            } => {
                let command = match owner {
                    LockOwner::Description => libc::F_OFD_SETLK,
                    LockOwner::Process => libc::F_SETLK,
                };
                let kind = match kind {
                    LockKind::Read => libc::F_RDLCK,
                    LockKind::Write => libc::F_WRLCK,
                    LockKind::Unlock => libc::F_UNLCK,
                };
                sys::lock(self.slot(slot)?, command, kind, start, length)?;
                DONE
            }
            Op::TestLock {
                slot,
                owner,
                start,
                length,
            } => {
                let command = match owner {
                    LockOwner::Description => libc::F_OFD_GETLK,
                    LockOwner::Process => libc::F_GETLK,
                };
                let lock = sys::lock(self.slot(slot)?, command, libc::F_WRLCK, start, length)?;
                Ok(Value::Text(format!("{lock:?}")))
            }
            _ => self.map_call(op),
        }
    }

    fn map_call(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Map {
                map,
                slot,
                shared,
                writable,
                page,
                pages,
            } => {
                let offset = page * PAGE as u64;
                let new = Mapping::new(self.slot(slot)?, shared, writable, offset, pages * PAGE)?;
                self.maps[usize::from(map % MAPS)] = Some(new);
                DONE
            }
            Op::MapRead { map, at, length } => {
                Ok(Value::Bytes(Bytes(self.map(map)?.read(at, length)?)))
            }
            Op::MapWrite {
                map,
                at,
                length,
                fill,
            } => number(self.map(map)?.write(at, &data(length, fill))?),
            Op::MapSync(map) => {
                self.map(map)?.sync()?;
                DONE
            }
            Op::Unmap(map) => {
                self.maps[usize::from(map % MAPS)] = None;
                DONE
            }
            _ => unreachable!("not a call on a file: {op:?}"),
        }
    }

    fn map(&self, map: u8) -> Result<&Mapping, Errno> {
        self.maps[usize::from(map % MAPS)]
            .as_ref()
            .ok_or(Errno::FAULT)
    }

    fn read(&self, slot: Slot, at: Option<u64>, length: usize) -> Outcome {
        let file = self.slot(slot)?;
        let mut buffer = Aligned::new(file, length, 0);
        let at = at.map(|at| buffer.align(at));
        if at.is_none() {
            aligned_position(file, false)?;
        }
        let count = match at {
            None => read(file, buffer.bytes_mut())?,
            Some(at) => pread(file, buffer.bytes_mut(), at)?,
        };
        Ok(Value::Bytes(Bytes(buffer.bytes_mut()[..count].to_vec())))
    }

    fn write(&self, slot: Slot, at: Option<u64>, length: usize, fill: u8) -> Outcome {
        let file = self.slot(slot)?;
        let mut buffer = Aligned::new(file, length, fill);
        let at = at.map(|at| buffer.align(at));
        // pwrite(2) on O_APPEND appends too.
        if at.is_none() || fcntl_getfl(file)?.contains(OFlags::APPEND) {
            aligned_position(file, false)?;
        }
        number(match at {
            None => write(file, buffer.bytes_mut())?,
            Some(at) => pwrite(file, buffer.bytes_mut(), at)?,
        })
    }

    fn write_vector(
        &self,
        slot: Slot,
        at: Option<u64>,
        (length, fill): (usize, u8),
        flags: u32,
    ) -> Outcome {
        let file = self.slot(slot)?;
        let mut buffer = Aligned::new(file, length, fill);
        let append = flags & RWF_APPEND != 0;
        if at.is_none() || append || fcntl_getfl(file)?.contains(OFlags::APPEND) {
            aligned_position(file, append)?;
        }
        // pwritev2 takes an offset of -1 for the file's own position.
        let at = at.map_or(u64::MAX, |at| buffer.align(at));
        let third = if buffer.direct { 0 } else { length / 3 };
        let (first, rest) = buffer.bytes_mut().split_at(third);
        let (second, last) = rest.split_at(third);
        let pieces = [first, second, last].map(IoSlice::new);
        let flags = ReadWriteFlags::from_bits_retain(flags);
        number(pwritev2(file, &pieces, at, flags)?)
    }

    fn seek(&self, slot: Slot, whence: Whence, offset: i64) -> Outcome {
        let file = self.slot(slot)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
        if kind == FileType::Directory {
            // Positions in a directory are opaque (readdir(3)); `Op::List` seeks to
            // those that it was given.
            return Err(Errno::ISDIR);
        }
        if matches!(whence, Whence::Data | Whence::Hole) {
            // See `known::UNWRITTEN_DATA`; without the right to, there is nothing unwritten.
            let _written = fdatasync(file);
        }
        let unsigned = offset.cast_unsigned();
        let position = match whence {
            Whence::Set => SeekFrom::Start(unsigned),
            Whence::Current => SeekFrom::Current(offset),
            Whence::End => SeekFrom::End(offset),
            Whence::Data => SeekFrom::Data(unsigned),
            Whence::Hole => SeekFrom::Hole(unsigned),
        };
        Ok(Value::Number(seek(file, position)?))
    }
}

fn number(count: usize) -> Outcome {
    Ok(Value::Number(count as u64))
}

/// Bytes that tell where they belong: a block in the wrong place is seen.
pub(crate) fn data(length: usize, fill: u8) -> Vec<u8> {
    let byte = |index: usize| fill ^ (index.wrapping_mul(7) ^ (index >> 8)).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

/// Refuses unbuffered I/O at a position that is not aligned, as ext4 does: what happens
/// there is each filesystem's own choice (open(2), NOTES on O_DIRECT). XFS looks at the
/// position of the descriptor even of what is then appended (`xfs_file_dio_write`).
fn aligned_position(file: BorrowedFd<'_>, append: bool) -> Result<(), Errno> {
    let flags = fcntl_getfl(file)?;
    if !flags.contains(OFlags::DIRECT) {
        return Ok(());
    }
    let mut position = rustix::fs::tell(file)?;
    if append || flags.contains(OFlags::APPEND) {
        position |= rustix::fs::fstat(file)?.st_size.cast_unsigned();
    }
    if position.is_multiple_of(ALIGNMENT as u64) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}

/// A buffer for any descriptor: aligned in memory, and for O_DIRECT also in length and
/// offset, see [`aligned_position`].
struct Aligned {
    memory: Vec<u8>,
    skip: usize,
    length: usize,
    direct: bool,
}

impl Aligned {
    fn new(file: BorrowedFd<'_>, length: usize, fill: u8) -> Self {
        let direct = fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        let length = if direct {
            length.next_multiple_of(ALIGNMENT)
        } else {
            length
        };
        let mut memory = vec![0; length + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        memory[skip..skip + length].copy_from_slice(&data(length, fill));
        Aligned {
            memory,
            skip,
            length,
            direct,
        }
    }

    fn align(&self, offset: u64) -> u64 {
        if self.direct {
            offset & !(ALIGNMENT as u64 - 1)
        } else {
            offset
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.skip..self.skip + self.length]
    }
}
