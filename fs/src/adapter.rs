//! The border to the kernel: one short method per FUSE operation, nothing decided here.
//! The file is long because the trait is wide.
//!
//! ACLs are evaluated by the kernel (`FUSE_POSIX_ACL`), and so that the lower filesystem
//! can apply default ACLs, the umask is ours to apply (`FUSE_DONT_MASK`).
//!
//! Locks are not negotiated: `setlk` of fuser cannot tell flock(2) from fcntl(2) locks,
//! and the kernel's own are right for a single mount. `HANDLE_KILLPRIV_V2` is not,
//! because fuser does not hand on its flags; so the kernel clears set-id bits itself.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tracing::{debug, trace};

use crate::passthrough::{Entry, Passthrough, SetAttr, WriteSync, XattrAnswer};
use crate::{Caller, Errno, Result, TimeChange};

/// RELEASE counts against this limit, so fuser's 16 would throttle a busy server.
const MAX_BACKGROUND: u16 = 512;

/// The largest request that Linux sends by default limits (256 pages).
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// What the kernel is asked for, where it has it.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);

/// A [`Passthrough`] as fuser wants it.
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

    fn answer_entry(&self, reply: ReplyEntry, result: Result<Entry>) {
        match result {
            Ok(entry) => {
                let validity = &self.fs.settings().validity;
                reply.entry(validity, &entry.attr, Generation(entry.generation));
            }
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn answer_attr(&self, reply: ReplyAttr, result: Result<fuser::FileAttr>) {
        match result {
            Ok(attr) => reply.attr(&self.fs.settings().validity, &attr),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn fopen_flags(&self) -> FopenFlags {
        if self.fs.opens_direct() {
            FopenFlags::FOPEN_DIRECT_IO
        } else {
            FopenFlags::empty()
        }
    }
}

fn to_fuser(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        umask,
    }
}

fn answer_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(to_fuser(error)),
    }
}

/// For fsync, fsyncdir, flush and access: the kernel takes ENOSYS there for "always
/// succeeds, never ask again", so it is never passed on.
fn answer_never_enosys(reply: ReplyEmpty, result: Result<()>) {
    answer_empty(
        reply,
        result.map_err(|error| {
            if error == Errno::NOSYS {
                Errno::IO
            } else {
                error
            }
        }),
    );
}

fn answer_count(reply: ReplyWrite, result: Result<usize>) {
    // A request is far below 4 GiB; a count that does not fit would be a lie.
    match result.and_then(|count| u32::try_from(count).map_err(|_| Errno::OVERFLOW)) {
        Ok(count) => reply.written(count),
        Err(error) => reply.error(to_fuser(error)),
    }
}

fn answer_xattr(reply: ReplyXattr, result: Result<XattrAnswer>) {
    match result {
        Ok(XattrAnswer::Size(size)) => reply.size(u32::try_from(size).unwrap_or(u32::MAX)),
        Ok(XattrAnswer::Data(data)) => reply.data(&data),
        Err(error) => reply.error(to_fuser(error)),
    }
}

thread_local! {
    /// One read buffer per dispatch thread, as large as the largest read it has seen.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities() & WANTED;
        config
            .add_capabilities(offered)
            .map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        // Both are below the limits that these functions check.
        let _previous = config.set_max_background(MAX_BACKGROUND);
        let _previous = config.set_max_write(MAX_WRITE_BYTES);
        debug!(abi = %config.kernel_abi(), ?offered, "INIT");
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer_entry(reply, self.fs.lookup(parent.into(), name));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        // fuser's batch_forget comes here once for each node.
        self.fs.forget(ino.into(), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        // The handle would lead to the same inode, and may be a directory's.
        self.answer_attr(reply, self.fs.getattr(ino.into()));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: TimeChange::from_fuser(atime),
            mtime: TimeChange::from_fuser(mtime),
        };
        let handle = fh.map(Into::into);
        self.answer_attr(reply, self.fs.setattr(ino.into(), handle, &change));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino.into()) {
            Ok(path) => reply.data(&path),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = self
            .fs
            .mknod(caller(req, umask), parent.into(), name, mode, rdev);
        self.answer_entry(reply, made);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.fs.mkdir(caller(req, umask), parent.into(), name, mode);
        self.answer_entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(reply, self.fs.unlink(parent.into(), name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(reply, self.fs.rmdir(parent.into(), name));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let made = self
            .fs
            .symlink(caller(req, 0), parent.into(), link_name, target);
        self.answer_entry(reply, made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent.into(), name), (newparent.into(), newname));
        answer_empty(
            reply,
            self.fs.rename(caller(req, 0), from, to, flags.bits()),
        );
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.answer_entry(reply, self.fs.link(ino.into(), newparent.into(), newname));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.fs.open(ino.into(), flags.0);
        trace!(%ino, ?opened, "OPEN");
        match opened {
            Ok(handle) => reply.opened(handle.into(), self.fopen_flags()),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.fs.read(fh.into(), offset, &mut buffer[..size]) {
                Ok(count) => reply.data(&buffer[..count]),
                Err(error) => reply.error(to_fuser(error)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let sync = WriteSync::from_request_flags(flags.0);
        trace!(%fh, offset, bytes = data.len(), ?sync, "WRITE");
        answer_count(reply, self.fs.write(fh.into(), offset, data, sync));
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        answer_never_enosys(reply, self.fs.flush(fh.into()));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(fh.into());
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        trace!(%fh, datasync, "FSYNC");
        answer_never_enosys(reply, self.fs.fsync(fh.into(), datasync));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.fs.opendir(ino.into());
        trace!(%ino, ?opened, "OPENDIR");
        match opened {
            Ok(handle) => reply.opened(handle.into(), FopenFlags::empty()),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.fs.readdir(fh.into(), offset, |entry| {
            !reply.add(INodeNo(entry.ino), entry.next, entry.kind, &entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let validity = self.fs.settings().validity;
        let list = self
            .fs
            .readdirplus(ino.into(), fh.into(), offset, |listed, entry| {
                // The kernel takes only number and kind from `.` and `..`.
                let plain = Entry::unlooked(listed);
                let entry = entry.unwrap_or(&plain);
                let generation = Generation(entry.generation);
                let (ino, attr) = (entry.attr.ino, &entry.attr);
                !reply.add(ino, listed.next, &listed.name, &validity, attr, generation)
            });
        match list {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(fh.into());
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        trace!(%fh, datasync, "FSYNCDIR");
        answer_never_enosys(reply, self.fs.fsyncdir(fh.into(), datasync));
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.fs.statfs(ino.into()) {
            Ok(vfs) => reply.statfs(
                vfs.f_blocks,
                vfs.f_bfree,
                vfs.f_bavail,
                vfs.f_files,
                vfs.f_ffree,
                u32::try_from(vfs.f_bsize).unwrap_or(4096),
                u32::try_from(vfs.f_namemax).unwrap_or(255),
                u32::try_from(vfs.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        answer_empty(reply, self.fs.setxattr(ino.into(), name, value, flags));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer_xattr(reply, self.fs.getxattr(ino.into(), name, size));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer_xattr(reply, self.fs.listxattr(ino.into(), size));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(reply, self.fs.removexattr(ino.into(), name));
    }

    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        answer_never_enosys(reply, self.fs.access(ino.into(), mask.bits()));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self
            .fs
            .create(caller(req, umask), parent.into(), name, mode, flags);
        trace!(%parent, ?name, handle = ?created.as_ref().map(|(_, handle)| handle), "CREATE");
        match created {
            Ok((entry, handle)) => reply.created(
                &self.fs.settings().validity,
                &entry.attr,
                Generation(entry.generation),
                handle.into(),
                self.fopen_flags(),
            ),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer_empty(reply, self.fs.fallocate(fh.into(), offset, length, mode));
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.fs.lseek(fh.into(), offset, whence) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(to_fuser(error)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // No flag is defined yet (copy_file_range(2)); an unknown one is not ignored.
        let copied = if flags.is_empty() {
            let (from, to) = ((fh_in.into(), offset_in), (fh_out.into(), offset_out));
            self.fs.copy_file_range(from, to, len)
        } else {
            Err(Errno::INVAL)
        };
        answer_count(reply, copied);
    }
}
