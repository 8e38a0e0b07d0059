//! Operations on extended attributes.
//!
//! They go through the magic link, because the f-calls refuse `O_PATH` descriptors. Not so
//! the question that the kernel asks before it first writes to a file
//! (`security.capability`): the file is open then, and its own descriptor answers.
//! POSIX ACLs pass as the attributes that they are; the kernel reads and evaluates them.

use std::ffi::OsStr;

use rustix::fs::{
    AtFlags, CWD, Mode, XattrFlags, chmodat, fgetxattr, fgetxattr_query, fstat, getxattr,
    getxattr_query, listxattr, listxattr_query, removexattr, setxattr,
};

use super::Passthrough;
use crate::{NodeId, Result};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` (include/uapi/linux/limits.h).
const MAX_BYTES: u32 = 65_536;

/// What a caller that may only have asked for the size gets.
#[derive(Debug)]
pub enum XattrAnswer {
    /// The size that a buffer must have.
    Size(usize),
    /// The value or the list.
    Data(Vec<u8>),
}

impl Passthrough {
    /// getxattr(2); a `size` of zero asks how long the value is.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn getxattr(&self, node: NodeId, name: &OsStr, size: u32) -> Result<XattrAnswer> {
        if let Some(file) = self.handles.file_of(node) {
            return answer(
                size,
                || fgetxattr_query(&*file, name),
                |buffer| fgetxattr(&*file, name, buffer),
            );
        }
        let node = self.nodes.get(node)?;
        let link = node.magic_link();
        let path = link.as_c_str();
        answer(
            size,
            || getxattr_query(path, name),
            |buffer| getxattr(path, name, buffer),
        )
    }

    /// listxattr(2); a `size` of zero asks how long the list is.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn listxattr(&self, node: NodeId, size: u32) -> Result<XattrAnswer> {
        let node = self.nodes.get(node)?;
        let link = node.magic_link();
        let path = link.as_c_str();
        answer(
            size,
            || listxattr_query(path),
            |buffer| listxattr(path, buffer),
        )
    }

    /// setxattr(2). With `kill_sgid` an access ACL that is set also clears the
    /// set-group-id bit, as for a caller who may not keep it.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn setxattr(
        &self,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        kill_sgid: bool,
    ) -> Result<()> {
        let node = self.nodes.get(node)?;
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        setxattr(node.magic_link().as_c_str(), name, value, flags)?;
        if kill_sgid {
            let mode = Mode::from_raw_mode(fstat(&*node)?.st_mode & 0o5777);
            chmodat(CWD, node.magic_link().as_c_str(), mode, AtFlags::empty())?;
        }
        Ok(())
    }

    /// removexattr(2).
    ///
    /// # Errors
    /// Those of removexattr(2).
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> {
        let node = self.nodes.get(node)?;
        removexattr(node.magic_link().as_c_str(), name)
    }
}

/// rustix does not take an empty buffer for the question how long it is.
fn answer(
    size: u32,
    query: impl FnOnce() -> Result<usize>,
    call: impl FnOnce(&mut [u8]) -> Result<usize>,
) -> Result<XattrAnswer> {
    if size == 0 {
        return query().map(XattrAnswer::Size);
    }
    let mut buffer = vec![0; size.min(MAX_BYTES) as usize];
    let length = call(&mut buffer)?;
    buffer.truncate(length);
    Ok(XattrAnswer::Data(buffer))
}
