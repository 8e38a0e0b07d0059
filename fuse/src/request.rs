//! From the bytes of one request to a value.
//!
//! The parser trusts nothing: every length is checked, names must end with their zero
//! byte inside the message, and what does not fit is a [`Malformed`], never a panic.
//! The same parser reads the kernel's requests and those that a relay was given by a
//! stranger; `fuzz/` feeds it arbitrary bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use thiserror::Error;
use zerocopy::FromBytes;

use crate::abi::{self, InHeader, fattr, opcode};

/// Why bytes are not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Fewer bytes than a header.
    #[error("{0} bytes are too few for a header")]
    NoHeader(usize),
    /// The header names another length than the message has.
    #[error("the header says {said} bytes, the message has {has}")]
    Length {
        /// What the header says.
        said: u32,
        /// What arrived.
        has: usize,
    },
    /// The extensions are longer than the message.
    #[error("extensions of {0} bytes do not fit")]
    Extensions(usize),
    /// The arguments of this operation end too early.
    #[error("the arguments of operation {0} are cut short")]
    Arguments(u32),
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request<'a> {
    /// Who asks, and about which node.
    pub header: &'a InHeader,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What is asked, with its arguments.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(
    missing_docs,
    reason = "the fields are the kernel's arguments, by their names"
)]
pub enum Operation<'a> {
    /// Find a name in the directory `header.nodeid`.
    Lookup {
        name: &'a OsStr,
    },
    /// Take back lookups; nobody waits for an answer.
    Forget {
        lookups: u64,
    },
    /// Take back lookups of many nodes; nobody waits for an answer.
    BatchForget {
        nodes: &'a [abi::ForgetOne],
    },
    Getattr {
        fh: Option<u64>,
    },
    Statx {
        fh: Option<u64>,
        mask: u32,
    },
    Setattr(Setattr<'a>),
    Readlink,
    Symlink {
        name: &'a OsStr,
        target: &'a OsStr,
    },
    Mknod {
        name: &'a OsStr,
        arg: &'a abi::MknodIn,
    },
    Mkdir {
        name: &'a OsStr,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a OsStr,
    },
    Rmdir {
        name: &'a OsStr,
    },
    Rename {
        name: &'a OsStr,
        new_parent: u64,
        new_name: &'a OsStr,
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a OsStr,
    },
    Open {
        flags: i32,
        kill_suidgid: bool,
    },
    Read(&'a abi::ReadIn),
    Write {
        arg: &'a abi::WriteIn,
        data: &'a [u8],
    },
    Statfs,
    Release {
        fh: u64,
    },
    Fsync {
        fh: u64,
        data_only: bool,
    },
    Setxattr {
        name: &'a OsStr,
        value: &'a [u8],
        flags: i32,
        kill_sgid: bool,
    },
    Getxattr {
        name: &'a OsStr,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a OsStr,
    },
    Flush {
        fh: u64,
    },
    Init(&'a abi::InitIn),
    Opendir {
        flags: i32,
    },
    Readdir(&'a abi::ReadIn),
    Readdirplus(&'a abi::ReadIn),
    Releasedir {
        fh: u64,
    },
    Fsyncdir {
        fh: u64,
        data_only: bool,
    },
    Access {
        mask: i32,
    },
    Create {
        name: &'a OsStr,
        arg: &'a abi::CreateIn,
    },
    /// Like `Create` without a name: an inode that no directory knows.
    Tmpfile {
        arg: &'a abi::CreateIn,
    },
    Interrupt {
        unique: u64,
    },
    Destroy,
    Ioctl {
        arg: &'a abi::IoctlIn,
        data: &'a [u8],
    },
    Fallocate(&'a abi::FallocateIn),
    Lseek(&'a abi::LseekIn),
    /// `wide` is COPY_FILE_RANGE_64, whose answer has 64 bits.
    CopyFileRange {
        arg: &'a abi::CopyFileRangeIn,
        wide: bool,
    },
    Syncfs,
    /// An operation that this crate does not know or nobody negotiated.
    Unknown,
}

/// The arguments of SETATTR, of which only those that `valid` names count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setattr<'a>(pub &'a abi::SetattrIn);

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Keep,
    /// The time of the call, in the lower filesystem's own clock and granularity.
    Now,
    /// This one.
    At {
        /// Seconds since 1970, negative before.
        seconds: i64,
        /// 0 to 999,999,999, counted forward from the second.
        nanoseconds: u32,
    },
}

impl Setattr<'_> {
    fn has(&self, bit: u32) -> bool {
        self.0.valid & bit != 0
    }

    /// The open file through which the change is made.
    #[must_use]
    pub fn fh(&self) -> Option<u64> {
        self.has(fattr::FH).then_some(self.0.fh)
    }

    /// New permission bits, with the type in the upper bits as the kernel sends it.
    #[must_use]
    pub fn mode(&self) -> Option<u32> {
        self.has(fattr::MODE).then_some(self.0.mode)
    }

    /// New owner.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.has(fattr::UID).then_some(self.0.uid)
    }

    /// New group.
    #[must_use]
    pub fn gid(&self) -> Option<u32> {
        self.has(fattr::GID).then_some(self.0.gid)
    }

    /// New size in bytes.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.has(fattr::SIZE).then_some(self.0.size)
    }

    /// Whether set-id bits must not survive the change.
    #[must_use]
    pub fn kill_suidgid(&self) -> bool {
        self.has(fattr::KILL_SUIDGID)
    }

    /// New time of last access.
    #[must_use]
    pub fn atime(&self) -> SetTime {
        let at = (self.0.atime, self.0.atimensec);
        self.time(fattr::ATIME, fattr::ATIME_NOW, at)
    }

    /// New time of last modification.
    #[must_use]
    pub fn mtime(&self) -> SetTime {
        let at = (self.0.mtime, self.0.mtimensec);
        self.time(fattr::MTIME, fattr::MTIME_NOW, at)
    }

    fn time(&self, given: u32, now: u32, (seconds, nanoseconds): (u64, u32)) -> SetTime {
        if !self.has(given) {
            SetTime::Keep
        } else if self.has(now) {
            SetTime::Now
        } else {
            SetTime::At {
                seconds: seconds.cast_signed(),
                nanoseconds,
            }
        }
    }
}

impl<'a> Request<'a> {
    /// Reads one message. `setxattr_ext` tells whether `FUSE_SETXATTR_EXT` was
    /// negotiated, which changes the form of SETXATTR. The bytes must begin at a multiple
    /// of 8.
    ///
    /// # Errors
    /// [`Malformed`] for anything but one whole request.
    pub fn parse(message: &'a [u8], setxattr_ext: bool) -> Result<Self, Malformed> {
        let (header, rest) =
            InHeader::ref_from_prefix(message).map_err(|_| Malformed::NoHeader(message.len()))?;
        if header.len as usize != message.len() {
            return Err(Malformed::Length {
                said: header.len,
                has: message.len(),
            });
        }
        let extensions = usize::from(header.total_extlen) * 8;
        let Some(length) = rest.len().checked_sub(extensions) else {
            return Err(Malformed::Extensions(extensions));
        };
        let arguments = Arguments {
            rest: &rest[..length],
        };
        let operation = arguments
            .operation(header.opcode, setxattr_ext)
            .ok_or(Malformed::Arguments(header.opcode))?;
        Ok(Request { header, operation })
    }
}

/// What is left of a message.
struct Arguments<'a> {
    rest: &'a [u8],
}

impl<'a> Arguments<'a> {
    fn take<T>(&mut self) -> Option<&'a T>
    where
        T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable,
    {
        let (value, rest) = T::ref_from_prefix(self.rest).ok()?;
        self.rest = rest;
        Some(value)
    }

    /// Bytes up to the next zero byte, which is taken too.
    fn name(&mut self) -> Option<&'a OsStr> {
        let end = self.rest.iter().position(|byte| *byte == 0)?;
        let name = OsStr::from_bytes(&self.rest[..end]);
        self.rest = &self.rest[end + 1..];
        Some(name)
    }

    fn bytes(&mut self, length: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length as usize)?;
        self.rest = rest;
        Some(bytes)
    }

    fn operation(mut self, code: u32, setxattr_ext: bool) -> Option<Operation<'a>> {
        Some(match code {
            opcode::LOOKUP => Operation::Lookup { name: self.name()? },
            opcode::FORGET => Operation::Forget {
                lookups: self.take::<abi::ForgetIn>()?.nlookup,
            },
            opcode::BATCH_FORGET => self.batch_forget()?,
            opcode::GETATTR => {
                let arg = self.take::<abi::GetattrIn>()?;
                let fh = (arg.getattr_flags & abi::GETATTR_FH != 0).then_some(arg.fh);
                Operation::Getattr { fh }
            }
            opcode::STATX => {
                let arg = self.take::<abi::StatxIn>()?;
                let fh = (arg.getattr_flags & abi::GETATTR_FH != 0).then_some(arg.fh);
                Operation::Statx {
                    fh,
                    mask: arg.sx_mask,
                }
            }
            opcode::SETATTR => Operation::Setattr(Setattr(self.take()?)),
            opcode::STATFS => Operation::Statfs,
            opcode::SYNCFS => Operation::Syncfs,
            opcode::INIT => Operation::Init(self.take()?),
            opcode::INTERRUPT => Operation::Interrupt {
                unique: self.take::<abi::InterruptIn>()?.unique,
            },
            opcode::DESTROY => Operation::Destroy,
            opcode::ACCESS => Operation::Access {
                mask: self.take::<abi::AccessIn>()?.mask.cast_signed(),
            },
            opcode::SETXATTR => self.setxattr(setxattr_ext)?,
            opcode::GETXATTR => {
                let size = self.take::<abi::GetxattrIn>()?.size;
                Operation::Getxattr {
                    name: self.name()?,
                    size,
                }
            }
            opcode::LISTXATTR => Operation::Listxattr {
                size: self.take::<abi::GetxattrIn>()?.size,
            },
            opcode::REMOVEXATTR => Operation::Removexattr { name: self.name()? },
            _ => match self.on_names(code)? {
                Operation::Unknown => self.on_files(code)?,
                known => known,
            },
        })
    }

    fn batch_forget(mut self) -> Option<Operation<'a>> {
        let count = self.take::<abi::BatchForgetIn>()?.count;
        let (nodes, _) =
            <[abi::ForgetOne]>::ref_from_prefix_with_elems(self.rest, count as usize).ok()?;
        Some(Operation::BatchForget { nodes })
    }

    fn setxattr(mut self, ext: bool) -> Option<Operation<'a>> {
        let (size, flags, more) = if ext {
            let arg = self.take::<abi::SetxattrIn>()?;
            (arg.size, arg.flags, arg.setxattr_flags)
        } else {
            let arg = self.take::<abi::SetxattrInCompat>()?;
            (arg.size, arg.flags, 0)
        };
        Some(Operation::Setxattr {
            name: self.name()?,
            value: self.bytes(size)?,
            flags: flags.cast_signed(),
            kill_sgid: more & abi::SETXATTR_ACL_KILL_SGID != 0,
        })
    }

    /// Operations on the names in a directory.
    fn on_names(&mut self, code: u32) -> Option<Operation<'a>> {
        Some(match code {
            opcode::READLINK => Operation::Readlink,
            opcode::SYMLINK => Operation::Symlink {
                name: self.name()?,
                target: self.name()?,
            },
            opcode::MKNOD => {
                let arg = self.take()?;
                Operation::Mknod {
                    name: self.name()?,
                    arg,
                }
            }
            opcode::MKDIR => {
                let arg = self.take::<abi::MkdirIn>()?;
                Operation::Mkdir {
                    name: self.name()?,
                    mode: arg.mode,
                    umask: arg.umask,
                }
            }
            opcode::UNLINK => Operation::Unlink { name: self.name()? },
            opcode::RMDIR => Operation::Rmdir { name: self.name()? },
            opcode::RENAME => {
                let arg = self.take::<abi::RenameIn>()?;
                self.rename(arg.newdir, 0)?
            }
            opcode::RENAME2 => {
                let arg = self.take::<abi::Rename2In>()?;
                self.rename(arg.newdir, arg.flags)?
            }
            opcode::LINK => {
                let node = self.take::<abi::LinkIn>()?.oldnodeid;
                Operation::Link {
                    node,
                    name: self.name()?,
                }
            }
            opcode::CREATE => {
                let arg = self.take()?;
                Operation::Create {
                    name: self.name()?,
                    arg,
                }
            }
            opcode::TMPFILE => Operation::Tmpfile { arg: self.take()? },
            _ => Operation::Unknown,
        })
    }

    fn rename(&mut self, new_parent: u64, flags: u32) -> Option<Operation<'a>> {
        let (name, new_name) = (self.name()?, self.name()?);
        Some(Operation::Rename {
            name,
            new_parent,
            new_name,
            flags,
        })
    }

    /// Operations on open files and directories.
    fn on_files(&mut self, code: u32) -> Option<Operation<'a>> {
        Some(match code {
            opcode::OPEN => {
                let arg = self.take::<abi::OpenIn>()?;
                Operation::Open {
                    flags: arg.flags.cast_signed(),
                    kill_suidgid: arg.open_flags & abi::OPEN_KILL_SUIDGID != 0,
                }
            }
            opcode::READ => Operation::Read(self.take()?),
            opcode::WRITE => {
                let arg = self.take::<abi::WriteIn>()?;
                Operation::Write {
                    arg,
                    data: self.bytes(arg.size)?,
                }
            }
            opcode::RELEASE => Operation::Release {
                fh: self.take::<abi::ReleaseIn>()?.fh,
            },
            opcode::FLUSH => Operation::Flush {
                fh: self.take::<abi::FlushIn>()?.fh,
            },
            opcode::FSYNC => {
                let arg = self.take::<abi::FsyncIn>()?;
                let data_only = arg.fsync_flags & abi::FSYNC_FDATASYNC != 0;
                Operation::Fsync {
                    fh: arg.fh,
                    data_only,
                }
            }
            opcode::OPENDIR => Operation::Opendir {
                flags: self.take::<abi::OpenIn>()?.flags.cast_signed(),
            },
            opcode::READDIR => Operation::Readdir(self.take()?),
            opcode::READDIRPLUS => Operation::Readdirplus(self.take()?),
            opcode::RELEASEDIR => Operation::Releasedir {
                fh: self.take::<abi::ReleaseIn>()?.fh,
            },
            opcode::FSYNCDIR => {
                let arg = self.take::<abi::FsyncIn>()?;
                let data_only = arg.fsync_flags & abi::FSYNC_FDATASYNC != 0;
                Operation::Fsyncdir {
                    fh: arg.fh,
                    data_only,
                }
            }
            opcode::IOCTL => {
                let arg = self.take::<abi::IoctlIn>()?;
                Operation::Ioctl {
                    arg,
                    data: self.bytes(arg.in_size)?,
                }
            }
            opcode::FALLOCATE => Operation::Fallocate(self.take()?),
            opcode::LSEEK => Operation::Lseek(self.take()?),
            opcode::COPY_FILE_RANGE => Operation::CopyFileRange {
                arg: self.take()?,
                wide: false,
            },
            opcode::COPY_FILE_RANGE_64 => Operation::CopyFileRange {
                arg: self.take()?,
                wide: true,
            },
            _ => Operation::Unknown,
        })
    }
}

#[cfg(test)]
mod tests;
