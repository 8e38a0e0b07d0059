//! One side: a directory, open descriptors, mappings and an identity, to which calls are
//! applied. Both sides run this same code; only the directory differs.

pub(crate) use attrs::acl_value;
pub(crate) use files::data;

mod attrs;
mod files;
mod names;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;
use rustix::process::{chdir, fchdir, umask};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::op::{Base, GROUP, MAPS, Op, Place, SLOTS, Slot, Target, User};
use crate::outcome::{Outcome, Stat, Value};
use crate::sys::Mapping;

/// See the module.
pub(crate) struct World {
    root: OwnedFd,
    root_path: PathBuf,
    slots: Vec<Option<OwnedFd>>,
    maps: Vec<Option<Mapping>>,
}

const DONE: Outcome = Ok(Value::Done);

impl World {
    /// Must run in a thread whose working directory and identity may change.
    ///
    /// # Errors
    /// As open(2) and chdir(2).
    pub(crate) fn new(root: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = open(root, flags, Mode::empty())?;
        fchdir(&descriptor)?;
        umask(Mode::from_raw_mode(0o022));
        Ok(World {
            root: descriptor,
            root_path: root.to_owned(),
            slots: (0..SLOTS).map(|_| None).collect(),
            maps: (0..MAPS).map(|_| None).collect(),
        })
    }

    /// Carries out one call.
    pub(crate) fn apply(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Stat(target) => self.stat(target),
            Op::Become(user) => set_identity(user),
            Op::Umask(mask) => {
                umask(Mode::from_raw_mode(mask.0));
                DONE
            }
            Op::ChangeDirectory(place) => {
                chdir(self.absolute(place)?)?;
                DONE
            }
            Op::ChangeToSlot(slot) => {
                fchdir(self.slot(slot)?)?;
                DONE
            }
            Op::WorkingDirectory => self.working_directory(),
            Op::Open { .. }
            | Op::Close(_)
            | Op::Dup { .. }
            | Op::Read { .. }
            | Op::Write { .. }
            | Op::WriteVector { .. }
            | Op::SetFlags { .. }
            | Op::GetFlags(_)
            | Op::Seek { .. }
            | Op::Allocate { .. }
            | Op::CopyRange { .. }
            | Op::Sync(..)
            | Op::Flock { .. }
            | Op::Lock { .. }
            | Op::TestLock { .. }
            | Op::Map { .. }
            | Op::MapRead { .. }
            | Op::MapWrite { .. }
            | Op::MapSync(_)
            | Op::Unmap(_) => self.file_call(op),
            Op::Truncate { .. }
            | Op::SetTimes { .. }
            | Op::SetMode { .. }
            | Op::SetOwner { .. }
            | Op::SetXattr { .. }
            | Op::GetXattr { .. }
            | Op::ListXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::SetAcl { .. }
            | Op::GetAttributes(_)
            | Op::SetAttributes { .. }
            | Op::StatFs(_) => self.attribute_call(op),
            _ => self.name_call(op),
        }
    }

    fn slot(&self, slot: Slot) -> Result<BorrowedFd<'_>, Errno> {
        let slot = self.slots[usize::from(slot % SLOTS)].as_ref();
        slot.map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    fn fill(&mut self, slot: Slot, descriptor: OwnedFd) {
        self.slots[usize::from(slot % SLOTS)] = Some(descriptor);
    }

    /// A directory descriptor and what follows it, for `*at` calls.
    fn at(&self, place: Place) -> Result<(BorrowedFd<'_>, Vec<u8>), Errno> {
        let base = match place.base {
            Base::Root => self.root.as_fd(),
            Base::Cwd => CWD,
            Base::Slot(slot) => self.slot(slot)?,
        };
        Ok((base, place.bytes()))
    }

    /// A path, for calls that take no directory descriptor.
    fn absolute(&self, place: Place) -> Result<PathBuf, Errno> {
        use std::os::fd::AsRawFd;
        let (base, name) = self.at(place)?;
        let name = OsString::from_vec(name);
        Ok(match place.base {
            Base::Cwd => PathBuf::from(name),
            _ => Path::new("/proc/self/fd")
                .join(base.as_raw_fd().to_string())
                .join(name),
        })
    }

    fn stat(&self, target: Target) -> Outcome {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let statx = match target {
            Target::Slot(slot) => statx(self.slot(slot)?, "", AtFlags::EMPTY_PATH, mask)?,
            Target::Path { place, .. } => {
                let (base, name) = self.at(place)?;
                statx(base, name, target.at_flags(), mask)?
            }
        };
        Ok(Value::Stat(Box::new(Stat::of(&statx))))
    }

    /// Relative to the root, which differs between the sides.
    fn working_directory(&self) -> Outcome {
        let path = rustix::process::getcwd(Vec::new())?;
        let path = PathBuf::from(OsString::from_vec(path.into_bytes()));
        let below = path.strip_prefix(&self.root_path);
        Ok(Value::Text(below.map_or_else(
            |_| "outside".into(),
            |path| format!("{path:?}"),
        )))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A thread counts as ended before the kernel has let go of its working
        // directory, and until then the mount is busy.
        let _left = chdir("/");
    }
}

/// Changes the calling thread's user and groups. The saved user stays root, which
/// permits the way back.
///
/// # Errors
/// As setresuid(2), setresgid(2) and setgroups(2).
pub(crate) fn set_identity(user: User) -> Outcome {
    let (root_user, root_group) = (Uid::ROOT, Gid::ROOT);
    set_thread_res_uid(root_user, root_user, root_user)?;
    let (user, groups) = match user {
        User::Root => {
            set_thread_groups(&[])?;
            set_thread_res_gid(root_group, root_group, root_group)?;
            return DONE;
        }
        User::Alice => (1001, vec![]),
        User::Bob => (1002, vec![Gid::from_raw(GROUP)]),
    };
    set_thread_groups(&groups)?;
    let group = Gid::from_raw(user);
    set_thread_res_gid(group, group, group)?;
    let user = Uid::from_raw(user);
    set_thread_res_uid(user, user, root_user)?;
    DONE
}
