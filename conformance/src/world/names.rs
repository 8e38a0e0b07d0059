//! Calls on names and directories.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, RawDir, SeekFrom, StatxFlags, accessat, linkat, makedev,
    mkdirat, mknodat, readlinkat, renameat_with, seek, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::{DONE, World};
use crate::op::{NodeKind, Op, Place, Slot};
use crate::outcome::{Bytes, Outcome, Value};

impl World {
    pub(super) fn name_call(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Same { slot, place } => self.same(slot, place),
            Op::List { slot, resume } => self.list(slot, resume),
            Op::MakeDirectory { place, mode } => {
                let (base, name) = self.at(place)?;
                mkdirat(base, name, Mode::from_raw_mode(mode.0))?;
                DONE
            }
            Op::RemoveDirectory(place) => {
                let (base, name) = self.at(place)?;
                unlinkat(base, name, AtFlags::REMOVEDIR)?;
                DONE
            }
            Op::Unlink(place) => {
                let (base, name) = self.at(place)?;
                unlinkat(base, name, AtFlags::empty())?;
                DONE
            }
            Op::MakeNode { place, kind, mode } => {
                let (base, name) = self.at(place)?;
                let (kind, device) = match kind {
                    NodeKind::Regular => (FileType::RegularFile, 0),
                    NodeKind::Fifo => (FileType::Fifo, 0),
                    NodeKind::Socket => (FileType::Socket, 0),
                    NodeKind::Null => (FileType::CharacterDevice, makedev(1, 3)),
                    // The numbers are as large as every filesystem takes them.
                    NodeKind::NoBlock => (FileType::BlockDevice, makedev(511, 262_143)),
                };
                mknodat(base, name, kind, Mode::from_raw_mode(mode.0), device)?;
                DONE
            }
            Op::MakeSymlink { place, target } => {
                let (base, name) = self.at(place)?;
                symlinkat(symlink_target(target), base, name)?;
                DONE
            }
            Op::ReadLink(place) => {
                let (base, name) = self.at(place)?;
                let target = readlinkat(base, name, Vec::new())?;
                Ok(Value::Bytes(Bytes(target.into_bytes())))
            }
            Op::Link { from, to, follow } => {
                let ((base, name), (to_base, to_name)) = (self.at(from)?, self.at(to)?);
                let follow = if follow {
                    AtFlags::SYMLINK_FOLLOW
                } else {
                    AtFlags::empty()
                };
                linkat(base, name, to_base, to_name, follow)?;
                DONE
            }
            Op::LinkSlot { slot, to } => {
                use std::os::fd::AsRawFd;
                let (base, name) = self.at(to)?;
                let open = format!("/proc/self/fd/{}", self.slot(slot)?.as_raw_fd());
                linkat(CWD, open, base, name, AtFlags::SYMLINK_FOLLOW)?;
                DONE
            }
            Op::Rename { from, to, flags } => {
                let ((base, name), (to_base, to_name)) = (self.at(from)?, self.at(to)?);
                renameat_with(base, name, to_base, to_name, flags)?;
                DONE
            }
            Op::Access { place, mode } => {
                let (base, name) = self.at(place)?;
                accessat(base, name, Access::from_bits_retain(mode), AtFlags::empty())?;
                DONE
            }
            _ => unreachable!("not a call on a name: {op:?}"),
        }
    }

    fn same(&self, slot: Slot, place: Place) -> Outcome {
        let mask = StatxFlags::INO;
        let open = statx(self.slot(slot)?, "", AtFlags::EMPTY_PATH, mask)?;
        let (base, name) = self.at(place)?;
        let named = statx(base, name, AtFlags::SYMLINK_NOFOLLOW, mask)?;
        Ok(Value::Flag(open.stx_ino == named.stx_ino))
    }

    fn list(&self, slot: Slot, resume: usize) -> Outcome {
        let directory = self.slot(slot)?;
        seek(directory, SeekFrom::Start(0))?;
        let (mut names, cookies) = entries(directory)?;
        if let Some(cookie) = cookies.get(resume) {
            seek(directory, SeekFrom::Start(*cookie))?;
            names.push(format!("after {resume}:"));
            names.extend(entries(directory)?.0);
        }
        Ok(Value::Names(names))
    }
}

/// From the current position to the end: names with kinds, and positions.
fn entries(directory: BorrowedFd<'_>) -> Result<(Vec<String>, Vec<u64>), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut stream = RawDir::new(directory, &mut buffer);
    let (mut names, mut cookies) = (Vec::new(), Vec::new());
    while let Some(entry) = stream.next() {
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        names.push(format!("{name:?} {:?}", entry.file_type()));
        cookies.push(entry.next_entry_cookie());
    }
    Ok((names, cookies))
}

/// Relative, because the sides' roots differ; one loops, one is as long as can be.
fn symlink_target(index: usize) -> Vec<u8> {
    match index {
        0 => b"a".to_vec(),
        1 => b"d".to_vec(),
        2 => b"d/a".to_vec(),
        3 => b"s".to_vec(),
        4 => b"none".to_vec(),
        5 => Vec::new(),
        6 => b"a/".repeat(2047),
        _ => b"a/".repeat(2048),
    }
}
