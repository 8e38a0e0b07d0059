//! What the FUSE protocol or the kernel's client cannot do, in one table.
//!
//! A difference between the mount and the plain directory that stands here is counted
//! and named in the report; any other is a failure. Each line is narrow: the errno, the
//! call and the direction must fit.

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::client::{Client, Kernel};
use crate::op::{Op, Target, Whence};
use crate::outcome::{Outcome, Stat, Value, When};
use crate::tree::Entry;

/// A difference that no server can avoid.
#[derive(Debug, PartialEq, Eq)]
pub struct KnownDifference {
    /// A short name, for the report.
    pub name: &'static str,
    /// Why it is so, and who says so.
    pub reason: &'static str,
}

/// Every known difference.
pub const KNOWN: &[KnownDifference] = &[
    RANGE_MODES,
    CACHED_ACCESS_TIME,
    FAULT_ACCESS_TIME,
    DIRECT_ACCESS_TIME,
    WRITE_ACCESS_TIME,
    LASTING_DIRECT,
    BIRTH_TIME,
    UNWRITTEN_DATA,
    CACHED_ALLOCATION,
    DIRECTORY_AT_ITS_END,
    SAME_SIZE_TIMES,
    MAPPED_WRITE_TIMES,
    UNWRITTEN_END,
    DIRECT_COPIES,
    ALLOCATION_TIMES,
];

const RANGE_MODES: KnownDifference = KnownDifference {
    name: "fallocate-range-modes",
    reason: "fuse_file_fallocate (fs/fuse/file.c) answers EOPNOTSUPP to every mode but \
             KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE before it asks the server",
};

const CACHED_ACCESS_TIME: KnownDifference = KnownDifference {
    name: "access-time-of-cached-reads",
    reason: "a read from the page cache, a cached listing or a cached symlink reaches no \
             server, and the FUSE client keeps no access times of its own (fs/fuse/inode.c \
             sets S_NOATIME)",
};

const FAULT_ACCESS_TIME: KnownDifference = KnownDifference {
    name: "access-time-of-page-faults",
    reason: "a page of a mapping that is not in the cache is a READ like any other, and the \
             server's read(2) is an access; natively mmap(2) is one and a fault is none \
             (filemap_fault in mm/filemap.c)",
};

const DIRECT_ACCESS_TIME: KnownDifference = KnownDifference {
    name: "access-time-of-direct-reads",
    reason: "an O_DIRECT that comes by fcntl(2) reaches no server, and under passthrough not \
             the file below (backing_file_read_iter in fs/backing-file.c), which is read \
             through the cache; where direct reads set no time of access (Btrfs: \
             btrfs_direct_read), this one does",
};

const WRITE_ACCESS_TIME: KnownDifference = KnownDifference {
    name: "access-time-of-partial-writes",
    reason: "the writeback cache reads the rest of a page before it writes a part \
             (fuse_write_begin in fs/fuse/file.c), and that READ says nothing that tells it \
             from a program's",
};

const LASTING_DIRECT: KnownDifference = KnownDifference {
    name: "o-direct-taken-back-under-passthrough",
    reason: "the kernel opens a descriptor of its own of the file below with the flags of \
             open(2) (fuse_passthrough_open in fs/fuse/passthrough.c) and reads and writes \
             through that: an O_DIRECT that fcntl(2) takes back later stays there, and with \
             it EINVAL for what is not aligned",
};

const BIRTH_TIME: KnownDifference = KnownDifference {
    name: "birth-time-before-6.6",
    reason: "FUSE_STATX came with Linux 6.6; before it no reply has room for a birth time",
};

const UNWRITTEN_DATA: KnownDifference = KnownDifference {
    name: "seek-data-of-unwritten-data",
    reason: "fuse_lseek (fs/fuse/file.c) asks the server without writing back first, so that \
             data in the writeback cache or a mapping still counts as a hole; sequences \
             call fdatasync(2) before SEEK_DATA and SEEK_HOLE",
};

const CACHED_ALLOCATION: KnownDifference = KnownDifference {
    name: "seek-data-of-allocated-pages-in-the-cache",
    reason: "pages of allocated and unwritten blocks count as data once they are in the page \
             cache (mapping_seek_hole_data in mm/filemap.c), and how much reading ahead has \
             brought there differs between the file below and the mount, which both read \
             ahead of the program",
};

const DIRECTORY_AT_ITS_END: KnownDifference = KnownDifference {
    name: "read-of-a-directory-at-its-end",
    reason: "Btrfs moves a directory that was listed twice to its end to the offset \
             2^63 - 1 without an entry (btrfs_real_readdir, fs/btrfs/inode.c), where \
             read(2) is EINVAL (rw_verify_area) before it is EISDIR; a READDIR answer \
             moves by entries alone",
};

const SAME_SIZE_TIMES: KnownDifference = KnownDifference {
    name: "times-of-truncating-to-the-same-size",
    reason: "with the writeback cache the FUSE client keeps times of its own and changes none \
             when truncate(2) leaves the size as it is (fuse_do_setattr in fs/fuse/dir.c), \
             where ext4 does",
};

const MAPPED_WRITE_TIMES: KnownDifference = KnownDifference {
    name: "times-of-mapped-writes-under-passthrough",
    reason: "the mapping is of the file below itself (fuse_passthrough_mmap in \
             fs/fuse/passthrough.c), whose times change at the fault; the FUSE inode's \
             attributes stay as they are cached, for as long as the cache policy says",
};

const UNWRITTEN_END: KnownDifference = KnownDifference {
    name: "blocks-behind-an-end-that-was-not-written-back",
    reason: "truncate(2) below what the writeback cache has not written yet makes the file \
             below longer, not shorter (fuse_do_setattr in fs/fuse/dir.c writes nothing back), and \
             leaves it the blocks that FALLOC_FL_KEEP_SIZE put behind its end",
};

const DIRECT_COPIES: KnownDifference = KnownDifference {
    name: "copies-of-direct-descriptors",
    reason: "FUSE_COPY_FILE_RANGE does not say how the two files are open (struct \
             fuse_copy_file_range_in), so the server copies through its cache what natively \
             is a direct write, and EINVAL where that is not aligned; sequences copy no range \
             of a descriptor with O_DIRECT",
};

const ALLOCATION_TIMES: KnownDifference = KnownDifference {
    name: "times-of-fallocate-under-writeback",
    reason: "with the writeback cache the FUSE client keeps times of its own and sets them at \
             each fallocate(2) (file_modified in fuse_file_fallocate, fs/fuse/file.c), where \
             Btrfs sets none if it has nothing to do (a hole behind the end: \
             btrfs_punch_hole in fs/btrfs/file.c)",
};

/// What may be taken out of the comparison of a sequence.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tolerance {
    /// The sequence maps a file.
    maps: bool,
    /// It writes through a mapping of the lower file itself.
    maps_below: bool,
    /// It turns an open file's reads and writes into direct ones.
    turns_direct: bool,
    /// It opens a file for direct reads and writes that the kernel does itself, and turns an
    /// open file's into others.
    takes_direct_back: bool,
    /// It allocates blocks without writing them.
    allocates: bool,
    /// It writes, and the client writes whole pages.
    writes_pages: bool,
    /// It truncates by name, and the client keeps times of its own.
    truncates: bool,
    /// It allocates, and the client keeps times of its own.
    sets_times_of_allocation: bool,
    /// It allocates blocks behind a file's end.
    allocates_behind: bool,
    /// It truncates after such an allocation, and the client may still hold what the file was
    /// written with, be it before the sequence.
    ends_before_what_is_held: bool,
}

impl Tolerance {
    /// Of the sequence of these calls.
    pub(crate) fn of<'a>(client: Option<Client>, calls: impl Iterator<Item = &'a Op>) -> Self {
        let mut tolerance = Tolerance::default();
        let mut opens_direct = false;
        for op in calls {
            opens_direct |= matches!(op, Op::Open { flags, .. } if flags.contains(OFlags::DIRECT));
            tolerance.takes_direct_back |= client == Some(Client::Passthrough)
                && opens_direct
                && matches!(op, Op::SetFlags { flags, .. } if !flags.contains(OFlags::DIRECT));
            tolerance.allocates |= matches!(op, Op::Allocate { .. });
            tolerance.sets_times_of_allocation |=
                client == Some(Client::Writeback) && matches!(op, Op::Allocate { .. });
            tolerance.writes_pages |= client == Some(Client::Writeback)
                && matches!(op, Op::Write { .. } | Op::WriteVector { .. });
            tolerance.maps_below |=
                client == Some(Client::Passthrough) && matches!(op, Op::MapWrite { .. });
            tolerance.allocates_behind |= matches!(op, Op::Allocate { mode, .. }
                if mode & FallocateFlags::KEEP_SIZE.bits() != 0);
            tolerance.ends_before_what_is_held |= client == Some(Client::Writeback)
                && tolerance.allocates_behind
                && matches!(op, Op::Truncate { .. });
            tolerance.maps |= matches!(op, Op::Map { .. });
            tolerance.turns_direct |=
                matches!(op, Op::SetFlags { flags, .. } if flags.contains(OFlags::DIRECT));
            tolerance.truncates |= client == Some(Client::Writeback)
                && matches!(
                    op,
                    Op::Truncate {
                        target: Target::Path { .. },
                        ..
                    }
                );
        }
        tolerance
    }

    /// Whether the mount refused a call that cannot get as far as natively. The plain
    /// directory is then spared the call, so that both stay the same.
    pub(crate) fn refused(self, op: &Op, mount: &Outcome) -> Option<&'static KnownDifference> {
        let carried =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        match (op, mount) {
            (Op::Allocate { mode, .. }, Err(Errno::OPNOTSUPP)) if mode & !carried.bits() != 0 => {
                Some(&RANGE_MODES)
            }
            (Op::Read { .. } | Op::Write { .. } | Op::WriteVector { .. }, Err(Errno::INVAL))
                if self.takes_direct_back =>
            {
                Some(&LASTING_DIRECT)
            }
            _ => None,
        }
    }

    /// The mount's outcome with known differences taken out, and those differences.
    pub(crate) fn outcome(
        self,
        op: &Op,
        mount: &Outcome,
        plain: &Outcome,
    ) -> (Outcome, Vec<&'static KnownDifference>) {
        match (op, mount, plain) {
            (_, Ok(Value::Stat(mount)), Ok(Value::Stat(plain))) => {
                let mut stat = mount.clone();
                let known = self.stat(&mut stat, plain);
                (Ok(Value::Stat(stat)), known)
            }
            (Op::Read { at: None, .. }, Err(Errno::ISDIR), Err(Errno::INVAL)) => {
                (plain.clone(), vec![&DIRECTORY_AT_ITS_END])
            }
            (op, mount, plain) if self.allocates && is_seek_for_data(op) && mount != plain => {
                (plain.clone(), vec![&CACHED_ALLOCATION])
            }
            _ => (mount.clone(), Vec::new()),
        }
    }

    /// The same for an entry of a tree.
    pub(crate) fn entry(
        self,
        mount: &Entry,
        plain: &Entry,
    ) -> (Entry, Vec<&'static KnownDifference>) {
        let mut entry = mount.clone();
        let mut known = self.stat(entry.stat_mut(), plain.stat());
        entry.settle_blocks(plain);
        if self.ends_before_what_is_held && entry.settle_more_blocks(plain) {
            known.push(&UNWRITTEN_END);
        }
        (entry, known)
    }

    fn stat(self, mount: &mut Stat, plain: &Stat) -> Vec<&'static KnownDifference> {
        let mut known = Vec::new();
        if mount.birth.is_none() && plain.birth.is_some() && Kernel::is_older_than(6, 6) {
            mount.birth = plain.birth;
            known.push(&BIRTH_TIME);
        }
        // Only older than it should be: a time of access seldom comes from nowhere.
        if mount.access != plain.access && plain.access == When::Now {
            mount.access = When::Now;
            known.push(&CACHED_ACCESS_TIME);
        }
        if self.truncates
            && mount.modification != plain.modification
            && plain.modification == When::Now
        {
            mount.modification = When::Now;
            known.push(&SAME_SIZE_TIMES);
        }
        if self.sets_times_of_allocation
            && mount.modification != plain.modification
            && mount.modification == When::Now
        {
            mount.modification = plain.modification;
            known.push(&ALLOCATION_TIMES);
        }
        if self.maps_below {
            for (mount, plain) in [
                (&mut mount.modification, plain.modification),
                (&mut mount.change, plain.change),
            ] {
                if *mount != plain && plain == When::Now {
                    *mount = When::Now;
                    known.push(&MAPPED_WRITE_TIMES);
                }
            }
        }
        let reasons = [
            (self.maps, &FAULT_ACCESS_TIME),
            (self.turns_direct, &DIRECT_ACCESS_TIME),
            (self.writes_pages, &WRITE_ACCESS_TIME),
        ];
        if mount.access != plain.access
            && mount.access == When::Now
            && let Some((_, reason)) = reasons.iter().find(|(holds, _)| *holds)
        {
            mount.access = plain.access;
            known.push(*reason);
        }
        known
    }
}

/// Whether a call asks where data or a hole is.
pub(crate) fn is_seek_for_data(op: &Op) -> bool {
    matches!(
        op,
        Op::Seek {
            whence: Whence::Data | Whence::Hole,
            ..
        }
    )
}

/// Takes birth times out of the comparison.
pub(crate) fn forget_birth(mount: &mut Outcome, plain: &Outcome) {
    if let (Ok(Value::Stat(mount)), Ok(Value::Stat(plain))) = (mount, plain) {
        mount.birth = plain.birth;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Base, Octal, Place};

    #[test]
    fn o_direct_lasts_under_passthrough_alone_and_once_it_was_taken_back() {
        let open = |flags| Op::Open {
            slot: 0,
            place: Place {
                base: Base::Root,
                name: 0,
            },
            flags,
            mode: Octal(0o644),
        };
        let set = |flags| Op::SetFlags { slot: 0, flags };
        let (direct, none) = (OFlags::DIRECT, OFlags::empty());
        let read = Op::Read {
            slot: 0,
            at: Some(1),
            length: 1,
        };
        let refused = |client, calls: &[Op], errno| {
            let tolerance = Tolerance::of(Some(client), calls.iter());
            tolerance.refused(&read, &Err(errno)).is_some()
        };
        let taken_back = [open(direct), set(none)];
        assert!(refused(Client::Passthrough, &taken_back, Errno::INVAL));
        assert!(!refused(Client::Passthrough, &taken_back, Errno::IO));
        assert!(!refused(Client::Requests, &taken_back, Errno::INVAL));
        for others in [
            [open(none), set(none)],
            [open(direct), set(direct)],
            [set(none), open(direct)],
        ] {
            assert!(!refused(Client::Passthrough, &others, Errno::INVAL));
        }
    }

    #[test]
    fn what_counts_as_data_may_differ_where_blocks_were_allocated() {
        let allocate = Op::Allocate {
            slot: 0,
            mode: 0,
            offset: 0,
            length: 1,
        };
        let seek = |whence| Op::Seek {
            slot: 0,
            whence,
            offset: 0,
        };
        let known = |calls: &[Op], op: &Op| {
            let (mount, plain) = (Err(Errno::NXIO), Ok(Value::Number(0)));
            let tolerance = Tolerance::of(None, calls.iter());
            let (found, known) = tolerance.outcome(op, &mount, &plain);
            assert_eq!(known.is_empty(), found != plain);
            !known.is_empty()
        };
        assert!(known(std::slice::from_ref(&allocate), &seek(Whence::Data)));
        assert!(!known(&[], &seek(Whence::Data)));
        assert!(!known(&[allocate], &seek(Whence::End)));
    }

    #[test]
    fn a_client_that_keeps_times_sets_them_when_it_allocates() {
        let allocate = Op::Allocate {
            slot: 0,
            mode: 0,
            offset: 0,
            length: 1,
        };
        let tolerance = |client| Tolerance::of(Some(client), std::iter::once(&allocate));
        assert!(tolerance(Client::Writeback).sets_times_of_allocation);
        for client in [Client::Requests, Client::Direct, Client::Passthrough] {
            assert!(!tolerance(client).sets_times_of_allocation);
        }
        let nothing = Tolerance::of(Some(Client::Writeback), std::iter::empty());
        assert!(!nothing.sets_times_of_allocation);
    }

    #[test]
    fn blocks_stay_behind_an_end_that_only_the_client_knew() {
        let allocate = |mode| Op::Allocate {
            slot: 0,
            mode,
            offset: 1 << 20,
            length: 1,
        };
        let truncate = Op::Truncate {
            target: Target::Slot(0),
            length: 1,
        };
        let known = |client, calls: &[&Op]| {
            Tolerance::of(Some(client), calls.iter().copied()).ends_before_what_is_held
        };
        let behind = allocate(FallocateFlags::KEEP_SIZE.bits());
        let held = [&behind, &truncate];
        assert!(known(Client::Writeback, &held));
        assert!(!known(Client::Requests, &held));
        assert!(!known(Client::Writeback, &[&allocate(0), &truncate]));
        assert!(!known(Client::Writeback, &[&truncate, &behind]));
    }

    #[test]
    fn a_directory_at_its_end_is_known_for_reads_at_the_position_alone() {
        let tolerated = |at, mount, plain| {
            let read = Op::Read {
                slot: 0,
                at,
                length: 1,
            };
            let sequence = Tolerance::default();
            let (_, known) = sequence.outcome(&read, &Err(mount), &Err(plain));
            !known.is_empty()
        };
        assert!(tolerated(None, Errno::ISDIR, Errno::INVAL));
        assert!(!tolerated(Some(0), Errno::ISDIR, Errno::INVAL));
        assert!(!tolerated(None, Errno::INVAL, Errno::ISDIR));
        assert!(!tolerated(None, Errno::ISDIR, Errno::BADF));
    }
}
