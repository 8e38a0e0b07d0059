//! The protocol floor: a server that answers from memory.
//!
//! It reads the names and sizes of a directory once and from then on touches no disk.
//! What it takes to stat, create or rename through it is what the protocol, the kernel
//! and this crate take; no filesystem that does the work can be faster. It asks the
//! kernel for what plugpull-fs asks for, and gives answers of the same validity.
//!
//! Simulated: directories and regular files, their names, sizes and modes. Not
//! simulated: what files hold (zeros), links of either kind, owners, times, extended
//! attributes. Whatever the kernel has looked up is kept for ever.
//!
//! `floor SOURCE MOUNTPOINT`, as root; it ends when it is unmounted.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plugpull_fuse::abi::{self, Attr, ROOT_ID, fopen, init};
use plugpull_fuse::{
    Device, Entry, Filesystem, Listing, Name, Offer, Opened, Operation, Reply, Request, Session,
    Wanted, mount,
};
use rustix::io::Errno;
use rustix::mount::MountFlags;

/// As plugpull-fs has it, like all that follows.
const VALIDITY: Duration = Duration::from_secs(1);
const MAX_WRITE_BYTES: u32 = 1 << 20;
const MAX_BACKGROUND: u16 = 512;
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
    | init::DIRECT_IO_ALLOW_MMAP
    | init::AUTO_INVAL_DATA;
const OPENED: u32 = fopen::KEEP_CACHE | fopen::NOFLUSH;

/// What every file holds.
static ZEROS: [u8; MAX_WRITE_BYTES as usize] = [0; MAX_WRITE_BYTES as usize];

fn main() -> Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    ensure!(paths.len() == 2, "usage: floor SOURCE MOUNTPOINT");
    let (source, mountpoint) = (&paths[0], &paths[1]);
    let tree = Tree::of(source).with_context(|| format!("read {}", source.display()))?;
    let device = Device::open().context("open /dev/fuse")?;
    let what = mount::What {
        source: "floor",
        subtype: "floor",
        options: &[],
    };
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    mount::as_root(&device, mountpoint, &what, flags)?;
    let floor = Floor {
        tree: RwLock::new(tree),
        listings: RwLock::default(),
        next_handle: AtomicU64::new(1),
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Session::new(device, floor)?.run(cores.clamp(16, 256))?;
    Ok(())
}

/// Every node, by its number less one.
#[derive(Debug)]
struct Tree(Vec<Node>);

#[derive(Debug)]
struct Node {
    attr: Attr,
    /// None for a file.
    names: Option<HashMap<OsString, u64>>,
}

impl Tree {
    fn of(source: &Path) -> std::io::Result<Self> {
        let mut tree = Tree(Vec::new());
        tree.add(libc::S_IFDIR | 0o755, 0);
        let mut todo = vec![(source.to_owned(), ROOT_ID)];
        while let Some((dir, parent)) = todo.pop() {
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                let about = entry.metadata()?;
                if !about.is_dir() && !about.is_file() {
                    continue;
                }
                let node = tree.add(about.mode(), about.size());
                tree.link(parent, &entry.file_name(), node);
                if about.is_dir() {
                    todo.push((entry.path(), node));
                }
            }
        }
        Ok(tree)
    }

    fn add(&mut self, mode: u32, size: u64) -> u64 {
        let ino = self.0.len() as u64 + 1;
        self.0.push(Node {
            attr: Attr {
                ino,
                size,
                blocks: size.div_ceil(512),
                mode,
                nlink: 1,
                blksize: 4096,
                ..Attr::default()
            },
            names: (mode & libc::S_IFMT == libc::S_IFDIR).then(HashMap::new),
        });
        ino
    }

    fn node(&self, id: u64) -> Result<&Node, Errno> {
        self.0.get(id as usize - 1).ok_or(Errno::STALE)
    }

    fn names(&self, id: u64) -> Result<&HashMap<OsString, u64>, Errno> {
        self.node(id)?.names.as_ref().ok_or(Errno::NOTDIR)
    }

    fn names_mut(&mut self, id: u64) -> Result<&mut HashMap<OsString, u64>, Errno> {
        let node = self.0.get_mut(id as usize - 1).ok_or(Errno::STALE)?;
        node.names.as_mut().ok_or(Errno::NOTDIR)
    }

    fn link(&mut self, parent: u64, name: &OsStr, node: u64) {
        if let Ok(names) = self.names_mut(parent) {
            names.insert(name.to_owned(), node);
        }
    }

    fn create(&mut self, parent: u64, name: &OsStr, mode: u32) -> Result<Entry, Errno> {
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let node = self.add(mode, 0);
        self.link(parent, name, node);
        self.entry(node)
    }

    fn entry(&self, node: u64) -> Result<Entry, Errno> {
        Ok(Entry {
            node,
            generation: 0,
            entry_valid: VALIDITY,
            attr_valid: VALIDITY,
            attr: self.node(node)?.attr,
        })
    }

    fn resize(&mut self, id: u64, size: impl FnOnce(u64) -> u64) -> Result<Attr, Errno> {
        let node = self.0.get_mut(id as usize - 1).ok_or(Errno::STALE)?;
        node.attr.size = size(node.attr.size);
        node.attr.blocks = node.attr.size.div_ceil(512);
        Ok(node.attr)
    }
}

/// A directory as it was when it was opened.
type Names = Vec<(OsString, u64)>;

#[derive(Debug)]
struct Floor {
    tree: RwLock<Tree>,
    listings: RwLock<HashMap<u64, Arc<Names>>>,
    next_handle: AtomicU64,
}

impl Filesystem for Floor {
    fn init(&mut self, _offer: &Offer) -> Wanted {
        Wanted {
            flags: WANTED,
            max_background: MAX_BACKGROUND,
            max_write: MAX_WRITE_BYTES,
            max_stack_depth: 0,
        }
    }

    fn forget(&self, _node: u64, _lookups: u64) {}

    fn serve(&self, request: &Request<'_>, reply: Reply<'_>) {
        let node = request.header.nodeid;
        match request.operation {
            Operation::Lookup { name } => answer_entry(reply, self.lookup(node, name)),
            Operation::Mkdir { name, mode, .. } => {
                let mode = mode & 0o7777 | libc::S_IFDIR;
                answer_entry(reply, self.write_tree().create(node, name, mode));
            }
            Operation::Create { name, arg } => {
                let made = self.write_tree().create(node, name, arg.mode);
                match made {
                    // Nobody counts lookups, so nothing is to be taken back.
                    Ok(entry) => {
                        let _taken = reply.created(&entry, self.opened());
                    }
                    Err(error) => reply.error(error),
                }
            }
            Operation::Unlink { name } | Operation::Rmdir { name } => {
                reply.empty(self.remove(node, name).map(drop));
            }
            Operation::Rename {
                name,
                new_parent,
                new_name,
                ..
            } => reply.empty(self.rename(node, name, new_parent, new_name)),
            Operation::Getattr { .. } => {
                let attr = self.read_tree().node(node).map(|node| node.attr);
                answer_attr(reply, attr);
            }
            Operation::Setattr(change) => {
                let size = change.size();
                let attr = self.write_tree().resize(node, |old| size.unwrap_or(old));
                answer_attr(reply, attr);
            }
            Operation::Statfs => reply.statfs(&abi::Kstatfs::default()),
            // All that is open is a number; what it is about comes with each request.
            Operation::Open { .. } => {
                let _taken = reply.opened(self.opened());
            }
            Operation::Opendir { .. } => self.opendir(node, reply),
            Operation::Read(arg) => self.read(node, arg, reply),
            Operation::Write { arg, data } => {
                let end = arg.offset + data.len() as u64;
                match self.write_tree().resize(node, |old| old.max(end)) {
                    Ok(_) => reply.written(data.len() as u32),
                    Err(error) => reply.error(error),
                }
            }
            Operation::Readdir(arg) => self.readdir(arg, false, reply),
            Operation::Readdirplus(arg) => self.readdir(arg, true, reply),
            Operation::Releasedir { fh } => {
                let listing = lock_write(&self.listings).remove(&fh);
                drop(listing);
                reply.ok();
            }
            Operation::Release { .. }
            | Operation::Flush { .. }
            | Operation::Fsync { .. }
            | Operation::Fsyncdir { .. }
            | Operation::Access { .. } => reply.ok(),
            // Each is asked again, as it is where the answer is on a disk.
            Operation::Getxattr { .. } => reply.error(Errno::NODATA),
            _ => reply.error(Errno::NOSYS),
        }
    }
}

impl Floor {
    fn read_tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_tree(&self) -> RwLockWriteGuard<'_, Tree> {
        lock_write(&self.tree)
    }

    fn opened(&self) -> Opened {
        Opened {
            fh: self.next_handle.fetch_add(1, Ordering::Relaxed),
            flags: OPENED,
            backing: 0,
        }
    }

    /// An entry of node 0 lets the kernel remember that there is no such name.
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Entry, Errno> {
        let tree = self.read_tree();
        match tree.names(parent)?.get(name) {
            Some(node) => tree.entry(*node),
            None => Ok(Entry {
                node: 0,
                generation: 0,
                entry_valid: VALIDITY,
                attr_valid: Duration::ZERO,
                attr: Attr::default(),
            }),
        }
    }

    fn remove(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        let mut tree = self.write_tree();
        tree.names_mut(parent)?.remove(name).ok_or(Errno::NOENT)
    }

    fn rename(&self, from: u64, name: &OsStr, to: u64, new_name: &OsStr) -> Result<(), Errno> {
        let mut tree = self.write_tree();
        tree.names(to)?;
        let node = tree.names_mut(from)?.remove(name).ok_or(Errno::NOENT)?;
        tree.link(to, new_name, node);
        Ok(())
    }

    fn opendir(&self, node: u64, reply: Reply<'_>) {
        let names: Result<Names, Errno> = self.read_tree().names(node).map(|names| {
            let names = names.iter();
            names.map(|(name, node)| (name.clone(), *node)).collect()
        });
        match names {
            Ok(names) => {
                let opened = Opened {
                    flags: 0,
                    ..self.opened()
                };
                lock_write(&self.listings).insert(opened.fh, Arc::new(names));
                let _taken = reply.opened(opened);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(&self, node: u64, arg: &abi::ReadIn, reply: Reply<'_>) {
        let size = self.read_tree().node(node).map(|node| node.attr.size);
        match size {
            Ok(size) => {
                let left = size.saturating_sub(arg.offset).min(u64::from(arg.size));
                reply.data(&ZEROS[..(left as usize).min(ZEROS.len())]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, arg: &abi::ReadIn, plus: bool, reply: Reply<'_>) {
        let listings = self.listings.read().unwrap_or_else(PoisonError::into_inner);
        let names = listings.get(&arg.fh).cloned();
        drop(listings);
        let Some(names) = names else {
            return reply.error(Errno::BADF);
        };
        let mut listing = Listing::new(arg.size);
        let tree = self.read_tree();
        for (n, (name, node)) in names.iter().enumerate().skip(arg.offset as usize) {
            let Ok(entry) = tree.entry(*node) else {
                continue;
            };
            let name = Name {
                name,
                ino: *node,
                next: n as u64 + 1,
                // The upper bits of a mode are the kind of an entry (readdir(3)).
                kind: entry.attr.mode >> 12,
            };
            let fits = match plus {
                true => listing.push_plus(name, &entry),
                false => listing.push(name),
            };
            if !fits {
                break;
            }
        }
        drop(tree);
        reply.data(listing.bytes());
    }
}

fn lock_write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn answer_entry(reply: Reply<'_>, entry: Result<Entry, Errno>) {
    match entry {
        Ok(entry) => {
            let _taken = reply.entry(&entry);
        }
        Err(error) => reply.error(error),
    }
}

fn answer_attr(reply: Reply<'_>, attr: Result<Attr, Errno>) {
    match attr {
        Ok(attr) => reply.attr(&attr, VALIDITY),
        Err(error) => reply.error(error),
    }
}
