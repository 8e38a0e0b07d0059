//! The border to the kernel: one arm per FUSE operation, nothing decided here.
//!
//! ACLs are evaluated by the kernel (`FUSE_POSIX_ACL`), and so that the lower filesystem
//! can apply default ACLs, the umask is ours to apply (`FUSE_DONT_MASK`). Set-id bits are
//! ours to clear (`FUSE_HANDLE_KILLPRIV_V2`): otherwise the kernel asks for an extended
//! attribute before every write.
//!
//! Locks are not negotiated: the kernel's own are right for a single mount.

use std::cell::RefCell;
use std::time::Duration;

use plugpull_fuse::abi::{self, InHeader, init};
use plugpull_fuse::{
    Device, Entry as WireEntry, Filesystem, Listing, Name, Offer, Opened as WireOpened, Operation,
    Reply, Request, Setattr, Wanted,
};
use tracing::{debug, trace};

use crate::attr::dirent_kind;
use crate::caller::raise_fsetid;
use crate::mutant::{self, Mutant};
use crate::passthrough::{
    CachePolicy, Entry, IoMode, Listed, Opened, Passthrough, SetAttr, Transport, WriteHow,
    WriteSync, XattrAnswer,
};
use crate::{Caller, Errno, NodeId, Result};

/// RELEASE counts against this limit, so the kernel's 12 would throttle a busy server.
const MAX_BACKGROUND: u16 = 512;

/// The largest request that Linux sends by default limits (256 pages), and the most that
/// one reads: who asks for more is no kernel.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// What the kernel is asked for in every mode, where it has it.
const WANTED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::ASYNC_DIO
    | init::CACHE_SYMLINKS
    | init::POSIX_ACL
    | init::DONT_MASK
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::DIRECT_IO_ALLOW_MMAP;

/// A [`Passthrough`] as a session wants it.
#[derive(Debug)]
pub struct Adapter {
    fs: Passthrough,
}

impl Adapter {
    /// Puts the border around a filesystem.
    #[must_use]
    pub fn new(fs: Passthrough) -> Self {
        Adapter { fs }
    }

    /// The filesystem behind it.
    #[must_use]
    pub fn passthrough(&self) -> &Passthrough {
        &self.fs
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, offer: &Offer) -> Wanted {
        let settings = *self.fs.settings();
        let passthrough = offer.flags & init::PASSTHROUGH != 0 && may_pass_through();
        let io = match settings.io {
            IoMode::Auto | IoMode::Passthrough if passthrough => IoMode::Passthrough,
            IoMode::Auto | IoMode::Passthrough => IoMode::Cached,
            chosen => chosen,
        };
        self.fs.settle_io(io);
        let mut flags = WANTED;
        if settings.transport != Transport::Device {
            flags |= init::OVER_IO_URING;
        }
        flags |= match settings.cache {
            CachePolicy::None | CachePolicy::Auto => init::AUTO_INVAL_DATA,
            CachePolicy::Always => init::EXPLICIT_INVAL_DATA,
        };
        flags |= match io {
            IoMode::Passthrough => init::PASSTHROUGH,
            IoMode::Writeback => init::WRITEBACK_CACHE,
            _ => 0,
        };
        debug!(
            minor = offer.minor,
            offered = offer.flags,
            wanted = flags,
            "INIT"
        );
        Wanted {
            flags,
            max_background: MAX_BACKGROUND,
            max_write: MAX_WRITE_BYTES,
            // The lower filesystem must not be stacked itself (ELOOP, and then this
            // server does the I/O), so that this one may still be stacked upon.
            max_stack_depth: u32::from(io == IoMode::Passthrough),
        }
    }

    fn forget(&self, node: u64, lookups: u64) {
        self.fs.forget(node.into(), lookups);
    }

    fn serve(&self, request: &Request<'_>, reply: Reply<'_>) {
        let node = NodeId::from(request.header.nodeid);
        if may_touch_set_id(&request.operation)
            && let Err(error) = raise_fsetid()
        {
            return reply.error(error);
        }
        match request.operation {
            Operation::Lookup { .. }
            | Operation::Mknod { .. }
            | Operation::Mkdir { .. }
            | Operation::Symlink { .. }
            | Operation::Link { .. } => self.answer_entry(reply, self.entry(request)),
            Operation::Create { .. } | Operation::Tmpfile { .. } => self.create(request, reply),
            Operation::Open {
                flags,
                kill_suidgid,
            } => {
                let by = kill_suidgid.then(|| caller(request.header, 0));
                let opened = self.fs.open(node, flags, by, reply.device());
                if kill_suidgid && flags & libc::O_TRUNC != 0 {
                    forget_mode(node, reply.device());
                }
                trace!(?node, ?opened, "OPEN");
                self.answer_opened(reply, node, opened);
            }
            Operation::Opendir { .. } => {
                let opened = self.fs.opendir(node);
                trace!(?node, ?opened, "OPENDIR");
                self.answer_opened_dir(reply, opened);
            }
            Operation::Read(arg) => self.read(node, arg, reply),
            Operation::Write { arg, data } => self.write(request.header, arg, data, reply),
            Operation::Readdir(arg) => self.readdir(arg, reply),
            Operation::Readdirplus(arg) => self.readdirplus(node, arg, reply),
            Operation::Getattr { .. } | Operation::Statx { .. } | Operation::Setattr(_) => {
                self.attributes(request, reply);
            }
            Operation::Release { fh } => {
                self.fs.release(node, fh.into(), reply.device());
                reply.ok();
            }
            Operation::Releasedir { fh } => {
                self.fs.releasedir(fh.into());
                reply.ok();
            }
            Operation::Unlink { .. } | Operation::Rmdir { .. } | Operation::Rename { .. } => {
                reply.empty(self.remove_or_rename(request));
            }
            Operation::Flush { .. }
            | Operation::Fsync { .. }
            | Operation::Fsyncdir { .. }
            | Operation::Syncfs
            | Operation::Access { .. } => reply.empty(never_enosys(self.sync_or_access(request))),
            Operation::Readlink => answer_data(reply, self.fs.readlink(node)),
            Operation::Getxattr { name, size } => {
                answer_xattr(reply, self.fs.getxattr(node, name, size));
            }
            Operation::Listxattr { size } => answer_xattr(reply, self.fs.listxattr(node, size)),
            Operation::Setxattr {
                name,
                value,
                flags,
                kill_sgid,
            } => reply.empty(self.fs.setxattr(node, name, value, flags, kill_sgid)),
            Operation::Removexattr { name } => reply.empty(self.fs.removexattr(node, name)),
            Operation::Statfs => match self.fs.statfs(node) {
                Ok(stat) => reply.statfs(&stat),
                Err(error) => reply.error(error),
            },
            Operation::Fallocate(_)
            | Operation::Lseek(_)
            | Operation::CopyFileRange { .. }
            | Operation::Ioctl { .. } => self.on_file(request, reply),
            // Nobody negotiated the rest; the kernel does not ask again.
            _ => reply.error(Errno::NOSYS),
        }
    }
}

/// Whether `CAP_FSETID` may count in an operation: all but the frequent ones of which it
/// is known that they ask for no set-id bits and clear none.
fn may_touch_set_id(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Lookup { .. }
        | Operation::Getattr { .. }
        | Operation::Getxattr { .. }
        | Operation::Flush { .. }
        | Operation::Fsync { .. }
        | Operation::Release { .. }
        | Operation::Unlink { .. } => false,
        Operation::Open { flags, .. } => flags & libc::O_TRUNC != 0,
        // A new file has none but those that are asked for (`inode_init_owner` in
        // fs/inode.c).
        Operation::Create { arg, .. } => arg.mode & (libc::S_ISUID | libc::S_ISGID) != 0,
        _ => true,
    }
}

/// Operations that answer with a name.
impl Adapter {
    fn entry(&self, request: &Request<'_>) -> Result<Entry> {
        let node = NodeId::from(request.header.nodeid);
        let by = |umask| caller(request.header, umask);
        match request.operation {
            Operation::Lookup { name } => self.fs.lookup(node, name),
            Operation::Mknod { name, arg } => {
                self.fs.mknod(by(arg.umask), node, name, arg.mode, arg.rdev)
            }
            Operation::Mkdir { name, mode, umask } => self.fs.mkdir(by(umask), node, name, mode),
            Operation::Symlink { name, target } => {
                self.fs.symlink(by(0), node, name, target.as_ref())
            }
            Operation::Link { node: of, name } => self.fs.link(of.into(), node, name),
            _ => Err(Errno::NOSYS),
        }
    }

    fn create(&self, request: &Request<'_>, reply: Reply<'_>) {
        let parent = NodeId::from(request.header.nodeid);
        let backing = reply.device();
        let created = match request.operation {
            Operation::Create { name, arg } => {
                let by = caller(request.header, arg.umask);
                let flags = arg.flags.cast_signed();
                self.fs.create(by, parent, name, arg.mode, flags, backing)
            }
            Operation::Tmpfile { arg } => {
                let by = caller(request.header, arg.umask);
                let flags = arg.flags.cast_signed();
                self.fs.tmpfile(by, parent, arg.mode, flags, backing)
            }
            _ => Err(Errno::NOSYS),
        };
        trace!(?parent, ?created, "CREATE");
        match created {
            Ok((entry, opened)) => {
                if !reply.created(&self.to_wire(&entry), to_wire(opened)) {
                    self.fs.release(entry.node, opened.handle, backing);
                    self.fs.forget(entry.node, 1);
                }
            }
            Err(error) => reply.error(error),
        }
    }

    fn answer_entry(&self, reply: Reply<'_>, result: Result<Entry>) {
        match result {
            Ok(entry) => {
                if !reply.entry(&self.to_wire(&entry)) {
                    self.fs.forget(entry.node, 1);
                }
            }
            // That there is no such name may be believed as long as that there is.
            Err(Errno::NOENT) if !self.validity().is_zero() => {
                let nothing = WireEntry {
                    node: 0,
                    generation: 0,
                    entry_valid: self.validity(),
                    attr_valid: Duration::ZERO,
                    attr: abi::Attr::default(),
                };
                let _nothing_to_take_back = reply.entry(&nothing);
            }
            Err(error) => reply.error(error),
        }
    }

    fn to_wire(&self, entry: &Entry) -> WireEntry {
        WireEntry {
            node: entry.node.number(),
            generation: entry.generation,
            entry_valid: self.validity(),
            attr_valid: self.validity(),
            attr: entry.attr,
        }
    }

    fn validity(&self) -> Duration {
        self.fs.settings().cache.validity()
    }

    fn remove_or_rename(&self, request: &Request<'_>) -> Result<()> {
        let parent = NodeId::from(request.header.nodeid);
        match request.operation {
            Operation::Unlink { name } => self.fs.unlink(parent, name),
            Operation::Rmdir { name } => self.fs.rmdir(parent, name),
            Operation::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => {
                let to = (new_parent.into(), new_name);
                let by = caller(request.header, 0);
                self.fs.rename(by, (parent, name), to, flags)
            }
            _ => Err(Errno::NOSYS),
        }
    }
}

/// Operations on attributes.
impl Adapter {
    fn attributes(&self, request: &Request<'_>, reply: Reply<'_>) {
        let node = NodeId::from(request.header.nodeid);
        let attr = match request.operation {
            // A handle would lead to the same inode, and may be a directory's.
            Operation::Getattr { .. } => self.fs.getattr(node),
            Operation::Setattr(change) => {
                let by = caller(request.header, 0);
                let handle = change.fh().map(Into::into);
                self.fs.setattr(by, node, handle, &change_of(&change))
            }
            Operation::Statx { mask, .. } => {
                return match self.fs.statx(node, mask) {
                    Ok(stat) => reply.statx(&stat, self.validity()),
                    Err(error) => reply.error(error),
                };
            }
            _ => Err(Errno::NOSYS),
        };
        match attr {
            Ok(attr) => reply.attr(&attr, self.validity()),
            Err(error) => reply.error(error),
        }
    }
}

fn change_of(change: &Setattr<'_>) -> SetAttr {
    SetAttr {
        mode: change.mode(),
        uid: change.uid(),
        gid: change.gid(),
        size: change.size(),
        atime: change.atime(),
        mtime: change.mtime(),
        kill_suidgid: change.kill_suidgid(),
    }
}

thread_local! {
    /// One read buffer per dispatch thread, as large as the largest read it has seen.
    static READ_BUFFER: RefCell<AlignedBuffer> = RefCell::default();
}

/// Operations on open files and directories.
impl Adapter {
    fn answer_opened(&self, reply: Reply<'_>, node: NodeId, opened: Result<Opened>) {
        let backing: &Device = reply.device();
        match opened {
            Ok(opened) => {
                if !reply.opened(to_wire(opened)) {
                    self.fs.release(node, opened.handle, backing);
                }
            }
            Err(error) => reply.error(error),
        }
    }

    fn answer_opened_dir(&self, reply: Reply<'_>, opened: Result<crate::HandleId>) {
        match opened {
            Ok(handle) => {
                let mut flags = 0;
                if self.fs.settings().cache == CachePolicy::Always {
                    flags = abi::fopen::KEEP_CACHE | abi::fopen::CACHE_DIR;
                }
                let opened = WireOpened {
                    fh: handle.into(),
                    flags,
                    backing: 0,
                };
                if !reply.opened(opened) {
                    self.fs.releasedir(handle);
                }
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(&self, node: NodeId, arg: &abi::ReadIn, reply: Reply<'_>) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let space = buffer.space(arg.size.min(MAX_WRITE_BYTES) as usize);
            let flags = arg.flags.cast_signed();
            match self.fs.read(node, arg.fh.into(), arg.offset, space, flags) {
                Ok(count) => reply.data(&space[..count]),
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(&self, header: &InHeader, arg: &abi::WriteIn, data: &[u8], reply: Reply<'_>) {
        let node = NodeId::from(header.nodeid);
        let kills = arg.write_flags & abi::WRITE_KILL_SUIDGID != 0;
        let how = WriteHow {
            flags: arg.flags.cast_signed(),
            clears_set_id: kills.then(|| caller(header, 0)),
        };
        let (fh, offset) = (arg.fh, arg.offset);
        let sync = WriteSync::from_request_flags(how.flags);
        trace!(fh, offset, bytes = data.len(), ?sync, "WRITE");
        let written = self.fs.write(node, fh.into(), offset, data, how);
        if written.is_ok_and(|written| written.cleared_set_id) {
            forget_mode(node, reply.device());
        }
        answer_count(reply, written.map(|written| written.count), false);
    }

    fn readdir(&self, arg: &abi::ReadIn, reply: Reply<'_>) {
        let mut listing = Listing::new(arg.size.min(MAX_WRITE_BYTES));
        let flags = arg.flags.cast_signed();
        let list = self.fs.readdir(arg.fh.into(), flags, arg.offset, |entry| {
            listing.push(name_of(entry))
        });
        match list {
            Ok(()) => reply.data(listing.bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(&self, node: NodeId, arg: &abi::ReadIn, reply: Reply<'_>) {
        let mut listing = Listing::new(arg.size.min(MAX_WRITE_BYTES));
        let (fh, flags, offset) = (arg.fh.into(), arg.flags.cast_signed(), arg.offset);
        let list = self
            .fs
            .readdirplus(node, fh, flags, offset, |listed, entry| {
                let entry = match entry {
                    Some(entry) => self.to_wire(entry),
                    // The kernel takes only number and kind from `.` and `..`.
                    None => unlooked(),
                };
                listing.push_plus(name_of(listed), &entry)
            });
        match list {
            Ok(()) => reply.data(listing.bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn sync_or_access(&self, request: &Request<'_>) -> Result<()> {
        match request.operation {
            Operation::Flush { fh } => self.fs.flush(fh.into()),
            Operation::Fsync { fh, data_only } => {
                trace!(fh, datasync = data_only, "FSYNC");
                self.fs.fsync(fh.into(), data_only)
            }
            Operation::Fsyncdir { fh, data_only } => {
                trace!(fh, datasync = data_only, "FSYNCDIR");
                self.fs.fsyncdir(fh.into(), data_only)
            }
            Operation::Syncfs => {
                trace!("SYNCFS");
                self.fs.syncfs()
            }
            Operation::Access { mask } => self.fs.access(request.header.nodeid.into(), mask),
            _ => Err(Errno::IO),
        }
    }

    fn on_file(&self, request: &Request<'_>, reply: Reply<'_>) {
        let by = caller(request.header, 0);
        match request.operation {
            Operation::Fallocate(arg) => {
                let mode = arg.mode.cast_signed();
                let range = (arg.offset, arg.length);
                let done = self.fs.fallocate(by, arg.fh.into(), range, mode);
                if done == Ok(true) {
                    forget_mode(request.header.nodeid.into(), reply.device());
                }
                reply.empty(done.map(|_| ()));
            }
            Operation::Lseek(arg) => {
                let whence = arg.whence.cast_signed();
                match self.fs.lseek(arg.fh.into(), arg.offset, whence) {
                    Ok(found) => reply.offset(found),
                    Err(error) => reply.error(error),
                }
            }
            // No flag is defined yet (copy_file_range(2)); an unknown one is not ignored.
            Operation::CopyFileRange { arg, .. } if arg.flags != 0 => reply.error(Errno::INVAL),
            Operation::CopyFileRange { arg, wide } => {
                let from = (arg.fh_in.into(), arg.off_in);
                let to = (arg.fh_out.into(), arg.off_out);
                let copied = self.fs.copy_file_range(by, from, to, arg.len);
                if copied.is_ok_and(|copied| copied.cleared_set_id) {
                    forget_mode(arg.nodeid_out.into(), reply.device());
                }
                answer_count(reply, copied.map(|copied| copied.count), wide);
            }
            Operation::Ioctl { arg, data } => {
                let on_dir = arg.flags & abi::IOCTL_DIR != 0;
                let room = arg.out_size;
                match self.fs.ioctl(arg.fh.into(), on_dir, arg.cmd, data, room) {
                    Ok(answer) => reply.ioctl(answer.result, &answer.data),
                    Err(error) => reply.error(error),
                }
            }
            _ => reply.error(Errno::NOSYS),
        }
    }
}

/// After a write the kernel asks for size and times anew, but not for the mode.
fn forget_mode(node: NodeId, device: &Device) {
    // A negative offset: attributes alone, so no page that this request waits for.
    if let Err(error) = device.invalidate_inode(node.number(), -1, 0) {
        debug!(%error, ?node, "the kernel knew nothing of it");
    }
}

/// Whether this process could register backing files: `CAP_SYS_ADMIN` in the initial
/// user namespace, which root of a container does not have; its files then fall back one
/// by one.
fn may_pass_through() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::SYS_ADMIN)
    })
}

fn caller(header: &InHeader, umask: u32) -> Caller {
    Caller {
        uid: header.uid,
        gid: header.gid,
        umask,
        pid: header.pid,
    }
}

fn to_wire(opened: Opened) -> WireOpened {
    WireOpened {
        fh: opened.handle.into(),
        flags: opened.flags,
        backing: opened.backing.map_or(0, |id| id.0),
    }
}

fn name_of(listed: &Listed) -> Name<'_> {
    Name {
        name: &listed.name,
        ino: listed.ino,
        next: listed.next,
        kind: dirent_kind(listed.kind),
    }
}

fn unlooked() -> WireEntry {
    WireEntry {
        node: 0,
        generation: 0,
        entry_valid: Duration::ZERO,
        attr_valid: Duration::ZERO,
        attr: abi::Attr::default(),
    }
}

/// For fsync, fsyncdir, flush and access: the kernel takes ENOSYS there for "always
/// succeeds, never ask again", so it is never passed on.
fn never_enosys(result: Result<()>) -> Result<()> {
    if mutant::active(Mutant::EnosysFsync) {
        return result.and(Err(Errno::NOSYS));
    }
    result.map_err(|error| match error {
        Errno::NOSYS => Errno::IO,
        error => error,
    })
}

fn answer_count(reply: Reply<'_>, result: Result<usize>, wide: bool) {
    match result {
        Ok(count) if wide => reply.copied(count as u64),
        // A request is far below 4 GiB; a count that does not fit would be a lie.
        Ok(count) => match u32::try_from(count) {
            Ok(count) => reply.written(count),
            Err(_) => reply.error(Errno::OVERFLOW),
        },
        Err(error) => reply.error(error),
    }
}

fn answer_data(reply: Reply<'_>, result: Result<Vec<u8>>) {
    match result {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(error),
    }
}

fn answer_xattr(reply: Reply<'_>, result: Result<XattrAnswer>) {
    match result {
        Ok(XattrAnswer::Size(size)) => reply.xattr_size(u32::try_from(size).unwrap_or(u32::MAX)),
        Ok(XattrAnswer::Data(data)) => reply.data(&data),
        Err(error) => reply.error(error),
    }
}

/// Memory that begins at a page boundary, as reads from `O_DIRECT` files need it.
#[derive(Debug, Default)]
struct AlignedBuffer {
    bytes: Vec<u8>,
}

impl AlignedBuffer {
    const ALIGNMENT: usize = 4096;

    fn space(&mut self, size: usize) -> &mut [u8] {
        if self.bytes.len() < size + Self::ALIGNMENT {
            self.bytes.resize(size + Self::ALIGNMENT, 0);
        }
        let start = self.bytes.as_ptr().align_offset(Self::ALIGNMENT);
        &mut self.bytes[start..start + size]
    }
}
