//! Calls on attributes: mode, owner, times, size, extended attributes, ACLs, flags.

use rustix::fs::{
    AtFlags, IFlags, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, chmodat,
    chownat, fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstatfs, ftruncate,
    futimens, getxattr, ioctl_getflags, ioctl_setflags, lgetxattr, listxattr, llistxattr,
    lremovexattr, lsetxattr, removexattr, setxattr, utimensat,
};
use rustix::thread::{Gid, Uid};

use super::files::data;
use super::{DONE, World};
use crate::op::{Acl, GROUP, Op, Target, Time, XATTRS};
use crate::outcome::{Bytes, Outcome, Value};
use crate::sys::truncate;

impl World {
    pub(super) fn attribute_call(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Truncate { target, length } => match target {
                Target::Slot(slot) => ftruncate(self.slot(slot)?, length)?,
                Target::Path { place, .. } => truncate(self.absolute(place)?, length)?,
            },
            Op::SetTimes {
                target,
                access,
                modification,
            } => {
                let times = Timestamps {
                    last_access: timespec(access),
                    last_modification: timespec(modification),
                };
                match target {
                    Target::Slot(slot) => futimens(self.slot(slot)?, &times)?,
                    Target::Path { place, .. } => {
                        let (base, name) = self.at(place)?;
                        utimensat(base, name, &times, target.at_flags())?;
                    }
                }
            }
            Op::SetMode { target, mode } => {
                let mode = Mode::from_raw_mode(mode.0);
                match target {
                    Target::Slot(slot) => fchmod(self.slot(slot)?, mode)?,
                    Target::Path { place, .. } => {
                        let (base, name) = self.at(place)?;
                        chmodat(base, name, mode, AtFlags::empty())?;
                    }
                }
            }
            Op::SetOwner {
                target,
                user,
                group,
            } => {
                let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
                match target {
                    Target::Slot(slot) => fchown(self.slot(slot)?, user, group)?,
                    Target::Path { place, .. } => {
                        let (base, name) = self.at(place)?;
                        chownat(base, name, user, group, target.at_flags())?;
                    }
                }
            }
            Op::GetAttributes(slot) => {
                let flags = ioctl_getflags(self.slot(slot)?)?;
                return Ok(Value::Number(flags.bits().into()));
            }
            Op::SetAttributes {
                slot,
                append,
                nodump,
            } => {
                let slot = self.slot(slot)?;
                let mut flags = ioctl_getflags(slot)?;
                flags.set(IFlags::APPEND, append);
                flags.set(IFlags::NODUMP, nodump);
                ioctl_setflags(slot, flags)?;
            }
            Op::StatFs(slot) => {
                let fs = fstatfs(self.slot(slot)?)?;
                // Free space is everybody's.
                let text = format!("{} {} {}", fs.f_bsize, fs.f_blocks, fs.f_namelen);
                return Ok(Value::Text(text));
            }
            _ => return self.xattr_call(op),
        }
        DONE
    }

    fn xattr_call(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::SetXattr {
                target,
                name,
                length,
                flags,
            } => {
                let value = data(length, 1);
                self.set_xattr(
                    target,
                    xattr(name),
                    &value,
                    XattrFlags::from_bits_retain(flags),
                )
            }
            Op::SetAcl {
                target,
                default,
                acl,
            } => {
                let name = if default { DEFAULT_ACL } else { ACCESS_ACL };
                self.set_xattr(target, name, &acl_value(acl), XattrFlags::empty())
            }
            Op::GetXattr { target, name, room } => {
                let (mut value, name) = (vec![0; room], xattr(name));
                let count = match target {
                    Target::Slot(slot) => fgetxattr(self.slot(slot)?, name, &mut value[..])?,
                    Target::Path {
                        place,
                        follow: true,
                    } => getxattr(self.absolute(place)?, name, &mut value[..])?,
                    Target::Path {
                        place,
                        follow: false,
                    } => lgetxattr(self.absolute(place)?, name, &mut value[..])?,
                };
                if room == 0 {
                    return Ok(Value::Number(count as u64));
                }
                value.truncate(count);
                Ok(Value::Bytes(Bytes(value)))
            }
            Op::ListXattr { target, room } => self.list_xattrs(target, room),
            Op::RemoveXattr { target, name } => {
                let name = xattr(name);
                match target {
                    Target::Slot(slot) => fremovexattr(self.slot(slot)?, name)?,
                    Target::Path {
                        place,
                        follow: true,
                    } => {
                        removexattr(self.absolute(place)?, name)?;
                    }
                    Target::Path {
                        place,
                        follow: false,
                    } => {
                        lremovexattr(self.absolute(place)?, name)?;
                    }
                }
                DONE
            }
            _ => unreachable!("not a call on attributes: {op:?}"),
        }
    }

    fn set_xattr(&self, target: Target, name: &str, value: &[u8], flags: XattrFlags) -> Outcome {
        match target {
            Target::Slot(slot) => fsetxattr(self.slot(slot)?, name, value, flags)?,
            Target::Path {
                place,
                follow: true,
            } => {
                setxattr(self.absolute(place)?, name, value, flags)?;
            }
            Target::Path {
                place,
                follow: false,
            } => {
                lsetxattr(self.absolute(place)?, name, value, flags)?;
            }
        }
        DONE
    }

    fn list_xattrs(&self, target: Target, room: usize) -> Outcome {
        let mut list = vec![0; room];
        let count = match target {
            Target::Slot(slot) => flistxattr(self.slot(slot)?, &mut list[..])?,
            Target::Path {
                place,
                follow: true,
            } => listxattr(self.absolute(place)?, &mut list[..])?,
            Target::Path {
                place,
                follow: false,
            } => llistxattr(self.absolute(place)?, &mut list[..])?,
        };
        if room == 0 {
            return Ok(Value::Number(count as u64));
        }
        let names = String::from_utf8_lossy(&list[..count]).into_owned();
        let mut names: Vec<_> = names.split_terminator('\0').map(String::from).collect();
        // The order is nowhere specified.
        names.sort();
        Ok(Value::Names(names))
    }
}

fn timespec(time: Time) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        Time::Omit => (0, UTIME_OMIT),
        Time::Now => (0, UTIME_NOW),
        Time::At(seconds, nanoseconds) => (seconds, nanoseconds.into()),
    };
    Timespec { tv_sec, tv_nsec }
}

const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

fn xattr(index: usize) -> &'static str {
    XATTRS[index % XATTRS.len()]
}

/// The value of a `system.posix_acl_*` attribute: version 2, then entries of tag,
/// permissions and id in little-endian order (kernel, `include/uapi/linux/posix_acl_xattr.h`).
pub(crate) fn acl_value(acl: Acl) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let (owner, other) = ((1, 6, NOBODY), (32, 0, NOBODY));
    let alice = (2, 6, 1001);
    let entries: &[(u16, u16, u32)] = match acl {
        Acl::Minimal => &[owner, (4, 4, NOBODY), other],
        Acl::AliceWrites => &[owner, alice, (4, 0, NOBODY), (16, 7, NOBODY), other],
        Acl::GroupReads => &[owner, (4, 0, NOBODY), (8, 4, GROUP), (16, 4, NOBODY), other],
        Acl::Invalid => &[owner, owner, (4, 4, NOBODY), other],
    };
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}
