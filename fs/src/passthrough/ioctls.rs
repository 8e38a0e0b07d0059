//! The ioctls that the protocol lets through and that mean something to a lower filesystem.

use super::Passthrough;
use crate::{Errno, HandleId, Result, sys};

/// What an ioctl returned, and the bytes that it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoctlAnswer {
    /// What ioctl(2) returned.
    pub result: i32,
    /// What it wrote to its argument.
    pub data: Vec<u8>,
}

/// Ioctls that are passed on: those that read or set flags and the project of a file
/// (ioctl_iflags(2), ioctl_xfs_fsgetxattr(2)) and read its generation. Their arguments
/// are plain bytes without pointers, at most 28 of them. Others would act with the server's
/// rights on what the kernel has not checked.
const PASSED_ON: [u32; 7] = [
    0x8008_6601, // FS_IOC_GETFLAGS
    0x4008_6602, // FS_IOC_SETFLAGS
    0x8004_6601, // FS_IOC32_GETFLAGS
    0x4004_6602, // FS_IOC32_SETFLAGS
    0x801c_581f, // FS_IOC_FSGETXATTR
    0x401c_5820, // FS_IOC_FSSETXATTR
    0x8008_7601, // FS_IOC_GETVERSION
];

impl Passthrough {
    /// ioctl(2) on an open file or, with `on_dir`, directory.
    ///
    /// # Errors
    /// Those of ioctl(2); ENOTTY for calls that are not passed on.
    pub fn ioctl(
        &self,
        handle: HandleId,
        on_dir: bool,
        command: u32,
        input: &[u8],
        room: u32,
    ) -> Result<IoctlAnswer> {
        if !PASSED_ON.contains(&command) {
            return Err(Errno::NOTTY);
        }
        let (result, data) = if on_dir {
            sys::ioctl_bytes(&*self.handles.dir(handle)?, native(command), input)?
        } else {
            sys::ioctl_bytes(&*self.handles.file(handle)?, native(command), input)?
        };
        let room = (room as usize).min(data.len());
        Ok(IoctlAnswer {
            result,
            data: data[..room].to_vec(),
        })
    }
}

/// The calls of 32-bit programs differ in their number alone: the argument is an `int`
/// in both, whatever the number says (fs/ioctl.c).
fn native(command: u32) -> u32 {
    match command {
        0x8004_6601 => 0x8008_6601,
        0x4004_6602 => 0x4008_6602,
        command => command,
    }
}
