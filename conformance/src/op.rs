//! One system call of a generated sequence, as a value that both sides can carry out.
//!
//! Descriptors are slots and paths are indices into [`NAMES`], because the real ones
//! differ between the two sides and because small numbers shrink well.

use std::fmt::{self, Debug, Formatter};

use rustix::fs::{AtFlags, OFlags, RenameFlags};

/// A place for an open descriptor; both sides fill and empty the same ones.
pub(crate) type Slot = u8;
/// How many descriptors a sequence may have open.
pub(crate) const SLOTS: u8 = 5;
/// How many memory mappings it may have.
pub(crate) const MAPS: u8 = 2;

/// Permission bits, shown in octal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Octal(pub u32);

impl Debug for Octal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05o}", self.0)
    }
}

/// Where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// The side's own root, which no other side sees.
    Root,
    /// The working directory, which may have been removed meanwhile.
    Cwd,
    /// A descriptor, which may be of a directory, of something else or closed.
    Slot(Slot),
}

/// A path: where it begins, and which of [`NAMES`] follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub base: Base,
    pub name: usize,
}

impl Debug for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match NAMES[self.name % NAMES.len()] {
            Name::Text(text) => write!(f, "{:?}/{text:?}", self.base),
            Name::Long(length) => write!(f, "{:?}/({length} bytes fe)", self.base),
        }
    }
}

/// What a call is about: a path or an open descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Path { place: Place, follow: bool },
    Slot(Slot),
}

/// The names that sequences use; early ones are simpler and shrinking prefers them.
pub(crate) const NAMES: &[Name] = &[
    Name::Text("a"),
    Name::Text("b"),
    Name::Text("d"),
    Name::Text("d/a"),
    Name::Text("d/b"),
    Name::Text("e"),
    Name::Text("e/a"),
    Name::Text("d/f"),
    Name::Text("d/f/a"),
    Name::Text("s"),
    Name::Text("s/a"),
    Name::Text("."),
    Name::Text(""),
    Name::Text("a/"),
    Name::Text("d/"),
    Name::Text("a/b"),
    Name::Text("none/a"),
    Name::Text("d/.."),
    Name::Long(255),
    Name::Long(256),
];

/// One of [`NAMES`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Name {
    Text(&'static str),
    /// So many bytes, none of which is UTF-8: the longest name has 255.
    Long(usize),
}

impl Name {
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Name::Text(text) => text.as_bytes().to_vec(),
            Name::Long(length) => vec![0xfe; length],
        }
    }
}

impl Place {
    pub(crate) fn bytes(self) -> Vec<u8> {
        NAMES[self.name % NAMES.len()].bytes()
    }
}

/// One time of a utimensat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    Omit,
    Now,
    /// Seconds since 1970, nanoseconds.
    At(i64, u32),
}

/// A kind of byte-range or whole-file lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockKind {
    Read,
    Write,
    Unlock,
}

/// Who owns a byte-range lock: the open file description, or the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockOwner {
    Description,
    Process,
}

/// What mknodat(2) makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Regular,
    Fifo,
    Socket,
    /// The null device, which is harmless to open.
    Null,
    /// A block device that does not exist.
    NoBlock,
}

/// Whence of an lseek(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whence {
    Set,
    Current,
    End,
    Data,
    Hole,
}

/// How far a synchronisation reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncKind {
    File,
    Data,
    Filesystem,
}

/// Whose identity later calls have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    /// An ordinary user with one group.
    Alice,
    /// An ordinary user with a supplementary group, [`GROUP`].
    Bob,
}

/// The supplementary group of [`User::Bob`].
pub(crate) const GROUP: u32 = 2001;

/// Names of extended attributes; some are refused, as the namespace says.
pub(crate) const XATTRS: &[&str] = &[
    "user.a",
    "user.bb",
    "trusted.t",
    "security.plugpull",
    "user.",
    "nonsense",
    "system.posix_acl_access",
    "system.posix_acl_default",
];

/// A shape of POSIX ACL; what it grants is fixed, see `acl` in the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acl {
    /// Equal to the mode bits `0o640`, which filesystems store as a mode.
    Minimal,
    /// Alice may read and write, with a mask.
    AliceWrites,
    /// Group [`GROUP`] may read, others nothing.
    GroupReads,
    /// An entry twice: EINVAL.
    Invalid,
}

/// One system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Open {
        slot: Slot,
        place: Place,
        flags: OFlags,
        mode: Octal,
    },
    Close(Slot),
    Dup {
        from: Slot,
        to: Slot,
    },
    Read {
        slot: Slot,
        at: Option<u64>,
        length: usize,
    },
    Write {
        slot: Slot,
        at: Option<u64>,
        length: usize,
        fill: u8,
    },
    /// pwritev2(2) of three pieces.
    WriteVector {
        slot: Slot,
        at: Option<u64>,
        length: usize,
        fill: u8,
        flags: u32,
    },
    SetFlags {
        slot: Slot,
        flags: OFlags,
    },
    GetFlags(Slot),
    Seek {
        slot: Slot,
        whence: Whence,
        offset: i64,
    },
    Truncate {
        target: Target,
        length: u64,
    },
    Allocate {
        slot: Slot,
        mode: u32,
        offset: u64,
        length: u64,
    },
    CopyRange {
        from: Slot,
        from_at: u64,
        to: Slot,
        to_at: u64,
        length: usize,
    },
    Sync(Slot, SyncKind),
    Stat(Target),
    StatFs(Slot),
    /// Is the open file what the path names?
    Same {
        slot: Slot,
        place: Place,
    },
    SetTimes {
        target: Target,
        access: Time,
        modification: Time,
    },
    SetMode {
        target: Target,
        mode: Octal,
    },
    SetOwner {
        target: Target,
        user: Option<u32>,
        group: Option<u32>,
    },
    SetXattr {
        target: Target,
        name: usize,
        length: usize,
        flags: u32,
    },
    GetXattr {
        target: Target,
        name: usize,
        room: usize,
    },
    ListXattr {
        target: Target,
        room: usize,
    },
    RemoveXattr {
        target: Target,
        name: usize,
    },
    SetAcl {
        target: Target,
        default: bool,
        acl: Acl,
    },
    /// Rewinds, reads all, seeks to the position after entry `resume`, reads the rest.
    List {
        slot: Slot,
        resume: usize,
    },
    MakeDirectory {
        place: Place,
        mode: Octal,
    },
    RemoveDirectory(Place),
    Unlink(Place),
    MakeNode {
        place: Place,
        kind: NodeKind,
        mode: Octal,
    },
    MakeSymlink {
        place: Place,
        target: usize,
    },
    ReadLink(Place),
    Link {
        from: Place,
        to: Place,
        follow: bool,
    },
    /// Gives an open file a name, which an O_TMPFILE has not.
    LinkSlot {
        slot: Slot,
        to: Place,
    },
    Rename {
        from: Place,
        to: Place,
        flags: RenameFlags,
    },
    Access {
        place: Place,
        mode: u32,
    },
    ChangeDirectory(Place),
    ChangeToSlot(Slot),
    WorkingDirectory,
    Flock {
        slot: Slot,
        kind: LockKind,
    },
    Lock {
        slot: Slot,
        owner: LockOwner,
        kind: LockKind,
        start: i64,
        length: i64,
    },
    /// What would stand in the way of a write lock.
    TestLock {
        slot: Slot,
        owner: LockOwner,
        start: i64,
        length: i64,
    },
    GetAttributes(Slot),
    /// FS_IOC_SETFLAGS with these bits on top of those that cannot be changed.
    SetAttributes {
        slot: Slot,
        append: bool,
        nodump: bool,
    },
    Map {
        map: u8,
        slot: Slot,
        shared: bool,
        writable: bool,
        page: u64,
        pages: usize,
    },
    MapRead {
        map: u8,
        at: usize,
        length: usize,
    },
    MapWrite {
        map: u8,
        at: usize,
        length: usize,
        fill: u8,
    },
    MapSync(u8),
    Unmap(u8),
    Become(User),
    Umask(Octal),
}

impl Target {
    /// How `*at` system calls are told.
    pub(crate) fn at_flags(self) -> AtFlags {
        match self {
            Target::Path { follow: false, .. } => AtFlags::SYMLINK_NOFOLLOW,
            _ => AtFlags::empty(),
        }
    }
}

impl Op {
    /// What the call may have changed, to be looked at afterwards.
    pub(crate) fn touched(&self) -> Vec<Target> {
        let path = |place| Target::Path {
            place,
            follow: false,
        };
        match *self {
            Op::Open { slot, place, .. } | Op::Same { slot, place } => {
                vec![path(place), Target::Slot(slot)]
            }
            Op::Read { slot, .. }
            | Op::Write { slot, .. }
            | Op::WriteVector { slot, .. }
            | Op::Allocate { slot, .. }
            | Op::SetAttributes { slot, .. }
            | Op::Sync(slot, _)
            | Op::List { slot, .. } => vec![Target::Slot(slot)],
            Op::CopyRange { from, to, .. } => vec![Target::Slot(from), Target::Slot(to)],
            Op::Truncate { target, .. }
            | Op::SetTimes { target, .. }
            | Op::SetMode { target, .. }
            | Op::SetOwner { target, .. }
            | Op::SetXattr { target, .. }
            | Op::RemoveXattr { target, .. }
            | Op::SetAcl { target, .. } => vec![target],
            Op::MakeDirectory { place, .. }
            | Op::RemoveDirectory(place)
            | Op::Unlink(place)
            | Op::MakeNode { place, .. }
            | Op::MakeSymlink { place, .. } => {
                vec![
                    path(place),
                    path(Place {
                        base: Base::Root,
                        name: DOT,
                    }),
                ]
            }
            Op::Link { from, to, .. } | Op::Rename { from, to, .. } => vec![path(from), path(to)],
            Op::LinkSlot { slot, to } => vec![path(to), Target::Slot(slot)],
            _ => vec![],
        }
    }
}

/// The index of "." in [`NAMES`].
const DOT: usize = 11;
