//! How sequences of calls are drawn, and how they shrink: fewer calls first, then
//! smaller numbers, which mean simpler names and descriptors.

use proptest::prelude::{Just, Strategy, any};
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, Union};
use proptest::{collection, option};
use rustix::fs::{OFlags, RenameFlags};

use crate::op::{
    Acl, Base, LockKind, LockOwner, MAPS, NAMES, NodeKind, Octal, Op, Place, SLOTS, Slot, SyncKind,
    Target, Time, User, Whence, XATTRS,
};

/// A call, and whether what it touched is looked at afterwards: a look refreshes what
/// the kernel has cached, which can hide that it was stale.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub op: Op,
    pub look: bool,
}

/// Sequences of up to `length` calls.
pub(crate) fn sequences(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (op(), any::<bool>()).prop_map(|(op, look)| Step { op, look });
    collection::vec(step, 1..=length)
}

type Ops = BoxedStrategy<Op>;

fn op() -> Ops {
    Union::new_weighted(vec![
        (14, open()),
        (20, transfer()),
        (10, on_descriptors()),
        (8, sizes()),
        (12, attributes()),
        (8, xattrs()),
        (18, names()),
        (6, directories()),
        (5, locks()),
        (7, maps()),
        (3, identity()),
    ])
    .boxed()
}

fn slot() -> impl Strategy<Value = Slot> + Clone {
    0..SLOTS
}

fn place() -> impl Strategy<Value = Place> + Clone {
    let base = Union::new_weighted(vec![
        (8, Just(Base::Root).boxed()),
        (2, Just(Base::Cwd).boxed()),
        (1, slot().prop_map(Base::Slot).boxed()),
    ]);
    // Mostly the first names, so that calls meet each other.
    let name = Union::new_weighted(vec![(5, 0..11usize), (1, 0..NAMES.len())]);
    (base, name).prop_map(|(base, name)| Place { base, name })
}

fn target() -> impl Strategy<Value = Target> + Clone {
    let path = (place(), any::<bool>()).prop_map(|(place, follow)| Target::Path { place, follow });
    Union::new_weighted(vec![
        (2, path.boxed()),
        (1, slot().prop_map(Target::Slot).boxed()),
    ])
}

/// Offsets at and beside the borders of blocks, pages and requests.
fn offset() -> impl Strategy<Value = u64> + Clone {
    select(vec![
        0,
        1,
        100,
        511,
        4095,
        4096,
        4097,
        8192,
        12_288,
        65_536,
        131_072,
        131_073,
        1 << 20,
        5 << 30,
    ])
}

fn length() -> impl Strategy<Value = usize> + Clone {
    select(vec![
        0,
        1,
        10,
        512,
        4095,
        4096,
        5000,
        9000,
        65_536,
        131_073,
        (1 << 20) + 3,
    ])
}

fn mode() -> impl Strategy<Value = Octal> + Clone {
    select(vec![
        0o644, 0o600, 0o666, 0o755, 0o777, 0, 0o4755, 0o2755, 0o6777, 0o2644, 0o1777, 0o200,
    ])
    .prop_map(Octal)
}

fn open() -> Ops {
    let access = select(vec![OFlags::RDWR, OFlags::RDONLY, OFlags::WRONLY]);
    let sometimes = |flag, weight| {
        Union::new_weighted(vec![
            (10 - weight, Just(OFlags::empty())),
            (weight, Just(flag)),
        ])
    };
    let flags = (
        access.clone(),
        sometimes(OFlags::CREATE, 5),
        sometimes(OFlags::EXCL, 1),
        sometimes(OFlags::TRUNC, 2),
        sometimes(OFlags::APPEND, 2),
        sometimes(OFlags::NOFOLLOW, 2),
        sometimes(OFlags::DIRECT, 1),
        sometimes(OFlags::DIRECTORY, 1),
        select(vec![
            OFlags::empty(),
            OFlags::DSYNC,
            OFlags::SYNC,
            OFlags::NOATIME,
        ]),
    );
    let flags = flags.prop_map(|(a, b, c, d, e, f, g, h, i)| a | b | c | d | e | f | g | h | i);
    let file = (slot(), place(), flags, mode()).prop_map(|(slot, place, flags, mode)| Op::Open {
        slot,
        place,
        flags,
        mode,
    });
    let special = select(vec![
        OFlags::RDONLY | OFlags::DIRECTORY,
        OFlags::PATH | OFlags::NOFOLLOW,
        OFlags::PATH | OFlags::DIRECTORY,
        OFlags::RDONLY,
    ]);
    let special = (slot(), place(), special).prop_map(|(slot, place, flags)| Op::Open {
        slot,
        place,
        flags,
        mode: Octal(0),
    });
    let exclusive = sometimes(OFlags::EXCL, 2);
    let nameless = (slot(), place(), access, exclusive, mode()).prop_map(
        |(slot, place, access, exclusive, mode)| Op::Open {
            slot,
            place,
            flags: OFlags::TMPFILE | access | exclusive,
            mode,
        },
    );
    Union::new_weighted(vec![
        (6, file.boxed()),
        (3, special.boxed()),
        (1, nameless.boxed()),
    ])
    .boxed()
}

fn transfer() -> Ops {
    let at = || option::weighted(0.6, offset());
    let data = || (slot(), at(), length(), any::<u8>());
    let read = data().prop_map(|(slot, at, length, _)| Op::Read { slot, at, length });
    let write = data().prop_map(|(slot, at, length, fill)| Op::Write {
        slot,
        at,
        length,
        fill,
    });
    // RWF_DSYNC, RWF_SYNC, RWF_APPEND
    let flags = select(vec![0, 2, 4, 0x10, 0x12]);
    let vector = (data(), flags).prop_map(|((slot, at, length, fill), flags)| Op::WriteVector {
        slot,
        at,
        length,
        fill,
        flags,
    });
    let copy = (slot(), offset(), slot(), offset(), length()).prop_map(
        |(from, from_at, to, to_at, length)| Op::CopyRange {
            from,
            from_at,
            to,
            to_at,
            length,
        },
    );
    Union::new_weighted(vec![
        (6, write.boxed()),
        (6, read.boxed()),
        (2, vector.boxed()),
        (1, copy.boxed()),
    ])
    .boxed()
}

fn on_descriptors() -> Ops {
    let flags = select(vec![
        OFlags::empty(),
        OFlags::APPEND,
        OFlags::DIRECT,
        OFlags::APPEND | OFlags::DIRECT,
    ]);
    let whence = select(vec![
        Whence::Set,
        Whence::Current,
        Whence::End,
        Whence::Data,
        Whence::Hole,
    ]);
    let seek_to = Union::new_weighted(vec![
        (4, offset().prop_map(u64::cast_signed).boxed()),
        (1, select(vec![-1i64, -4096, 1 << 43]).boxed()),
    ]);
    let sync = select(vec![SyncKind::File, SyncKind::Data, SyncKind::Filesystem]);
    Union::new_weighted(vec![
        (3, slot().prop_map(Op::Close).boxed()),
        (
            1,
            (slot(), slot())
                .prop_map(|(from, to)| Op::Dup { from, to })
                .boxed(),
        ),
        (
            2,
            (slot(), flags)
                .prop_map(|(slot, flags)| Op::SetFlags { slot, flags })
                .boxed(),
        ),
        (1, slot().prop_map(Op::GetFlags).boxed()),
        (
            4,
            (slot(), whence, seek_to)
                .prop_map(|(slot, whence, offset)| Op::Seek {
                    slot,
                    whence,
                    offset,
                })
                .boxed(),
        ),
        (
            2,
            (slot(), sync)
                .prop_map(|(slot, kind)| Op::Sync(slot, kind))
                .boxed(),
        ),
        (1, slot().prop_map(Op::StatFs).boxed()),
        (
            2,
            (slot(), place())
                .prop_map(|(slot, place)| Op::Same { slot, place })
                .boxed(),
        ),
    ])
    .boxed()
}

fn sizes() -> Ops {
    // KEEP_SIZE 1, PUNCH_HOLE 2, COLLAPSE 8, ZERO 16, INSERT 32
    let modes = select(vec![0, 1, 3, 16, 17, 2, 8, 32, 64]);
    let allocate = (slot(), modes, offset(), length()).prop_map(|(slot, mode, offset, length)| {
        // Gigabytes are not to be allocated.
        let offset = offset.min(2 << 20);
        Op::Allocate {
            slot,
            mode,
            offset,
            length: length as u64,
        }
    });
    let truncate =
        (target(), offset()).prop_map(|(target, length)| Op::Truncate { target, length });
    Union::new(vec![truncate.boxed(), allocate.boxed()]).boxed()
}

fn time() -> impl Strategy<Value = Time> + Clone {
    select(vec![
        Time::At(1_000_000_000, 123_456_789),
        Time::Omit,
        Time::Now,
        Time::At(0, 0),
        Time::At(-1, 500_000_000),
        Time::At(-1_000_000_000, 1),
        Time::At(-2_147_483_648, 0),
        Time::At(-3_000_000_000, 7),
        Time::At(4_294_967_296, 999_999_999),
        Time::At(5_000_000_000, 5),
        Time::At(20_000_000_000, 5),
        Time::At(1, 1_000_000_000),
    ])
}

fn attributes() -> Ops {
    let owner = || option::weighted(0.7, select(vec![0u32, 1001, 1002, 2001, 70_000]));
    Union::new_weighted(vec![
        (4, target().prop_map(Op::Stat).boxed()),
        (
            3,
            (target(), time(), time())
                .prop_map(|(target, access, modification)| Op::SetTimes {
                    target,
                    access,
                    modification,
                })
                .boxed(),
        ),
        (
            3,
            (target(), mode())
                .prop_map(|(target, mode)| Op::SetMode { target, mode })
                .boxed(),
        ),
        (
            3,
            (target(), owner(), owner())
                .prop_map(|(target, user, group)| Op::SetOwner {
                    target,
                    user,
                    group,
                })
                .boxed(),
        ),
        (1, slot().prop_map(Op::GetAttributes).boxed()),
        (
            1,
            (slot(), any::<bool>(), any::<bool>())
                .prop_map(|(slot, append, nodump)| Op::SetAttributes {
                    slot,
                    append,
                    nodump,
                })
                .boxed(),
        ),
    ])
    .boxed()
}

fn xattrs() -> Ops {
    let name = || 0..XATTRS.len();
    let length = select(vec![0usize, 1, 20, 1000, 3000, 65_536, 65_537]);
    // XATTR_CREATE 1, XATTR_REPLACE 2
    let set = (target(), name(), length, 0..4u32).prop_map(|(target, name, length, flags)| {
        Op::SetXattr {
            target,
            name,
            length,
            flags,
        }
    });
    let room = || select(vec![4096usize, 0, 3, 65_536]);
    let get = (target(), name(), room()).prop_map(|(target, name, room)| Op::GetXattr {
        target,
        name,
        room,
    });
    let list = (target(), room()).prop_map(|(target, room)| Op::ListXattr { target, room });
    let remove = (target(), name()).prop_map(|(target, name)| Op::RemoveXattr { target, name });
    let shapes = select(vec![
        Acl::Minimal,
        Acl::AliceWrites,
        Acl::GroupReads,
        Acl::Invalid,
    ]);
    let acl = (target(), any::<bool>(), shapes).prop_map(|(target, default, acl)| Op::SetAcl {
        target,
        default,
        acl,
    });
    Union::new(vec![
        set.boxed(),
        get.boxed(),
        list.boxed(),
        remove.boxed(),
        acl.boxed(),
    ])
    .boxed()
}

fn names() -> Ops {
    let kind = select(vec![
        NodeKind::Regular,
        NodeKind::Fifo,
        NodeKind::Socket,
        NodeKind::Null,
        NodeKind::NoBlock,
    ]);
    let rename_flags = select(vec![
        RenameFlags::empty(),
        RenameFlags::NOREPLACE,
        RenameFlags::EXCHANGE,
        RenameFlags::WHITEOUT,
        RenameFlags::NOREPLACE | RenameFlags::EXCHANGE,
    ]);
    let rename = (place(), place(), rename_flags).prop_map(|(from, to, flags)| Op::Rename {
        from,
        to,
        flags,
    });
    let link = (place(), place(), any::<bool>()).prop_map(|(from, to, follow)| Op::Link {
        from,
        to,
        follow,
    });
    let node =
        (place(), kind, mode()).prop_map(|(place, kind, mode)| Op::MakeNode { place, kind, mode });
    let symlink =
        (place(), 0..8usize).prop_map(|(place, target)| Op::MakeSymlink { place, target });
    let link_slot = (slot(), place()).prop_map(|(slot, to)| Op::LinkSlot { slot, to });
    let access = (place(), 0..8u32).prop_map(|(place, mode)| Op::Access { place, mode });
    Union::new_weighted(vec![
        (5, place().prop_map(Op::Unlink).boxed()),
        (6, rename.boxed()),
        (4, link.boxed()),
        (2, node.boxed()),
        (3, symlink.boxed()),
        (1, link_slot.boxed()),
        (1, place().prop_map(Op::ReadLink).boxed()),
        (1, access.boxed()),
    ])
    .boxed()
}

fn directories() -> Ops {
    let make = (place(), mode()).prop_map(|(place, mode)| Op::MakeDirectory { place, mode });
    let list = (slot(), 0..6usize).prop_map(|(slot, resume)| Op::List { slot, resume });
    Union::new_weighted(vec![
        (4, make.boxed()),
        (3, place().prop_map(Op::RemoveDirectory).boxed()),
        (3, list.boxed()),
        (2, place().prop_map(Op::ChangeDirectory).boxed()),
        (1, slot().prop_map(Op::ChangeToSlot).boxed()),
        (1, Just(Op::WorkingDirectory).boxed()),
    ])
    .boxed()
}

fn locks() -> Ops {
    let kind = || select(vec![LockKind::Write, LockKind::Read, LockKind::Unlock]);
    let owner = || select(vec![LockOwner::Description, LockOwner::Process]);
    let range = || {
        (
            select(vec![0i64, 10, 4096]),
            select(vec![0i64, 1, 20, 1 << 40]),
        )
    };
    let flock = (slot(), kind()).prop_map(|(slot, kind)| Op::Flock { slot, kind });
    let lock =
        (slot(), owner(), kind(), range()).prop_map(|(slot, owner, kind, (start, length))| {
            Op::Lock {
                slot,
                owner,
                kind,
                start,
                length,
            }
        });
    let test = (slot(), owner(), range()).prop_map(|(slot, owner, (start, length))| Op::TestLock {
        slot,
        owner,
        start,
        length,
    });
    Union::new(vec![flock.boxed(), lock.boxed(), test.boxed()]).boxed()
}

fn maps() -> Ops {
    let map = || 0..MAPS;
    let new = (
        map(),
        slot(),
        any::<bool>(),
        any::<bool>(),
        0..3u64,
        1..5usize,
    )
        .prop_map(|(map, slot, shared, writable, page, pages)| Op::Map {
            map,
            slot,
            shared,
            writable,
            page,
            pages,
        });
    let at = || select(vec![0usize, 1, 4000, 4096, 8190]);
    let length = || select(vec![1usize, 100, 4096, 9000]);
    let read =
        (map(), at(), length()).prop_map(|(map, at, length)| Op::MapRead { map, at, length });
    let write =
        (map(), at(), length(), any::<u8>()).prop_map(|(map, at, length, fill)| Op::MapWrite {
            map,
            at,
            length,
            fill,
        });
    Union::new_weighted(vec![
        (4, new.boxed()),
        (3, read.boxed()),
        (4, write.boxed()),
        (1, map().prop_map(Op::MapSync).boxed()),
        (1, map().prop_map(Op::Unmap).boxed()),
    ])
    .boxed()
}

fn identity() -> Ops {
    // Back to root as often as away: as somebody else most calls are refused.
    let user = select(vec![User::Root, User::Alice, User::Root, User::Bob]);
    let mask = select(vec![0o022, 0, 0o077, 0o027]).prop_map(Octal);
    Union::new_weighted(vec![
        (3, user.prop_map(Op::Become).boxed()),
        (1, mask.prop_map(Op::Umask).boxed()),
    ])
    .boxed()
}
