//! A tree of every kind of file that tar can pack.

use serde::{Deserialize, Serialize};

use super::{mix, text};

/// A tree to pack: a hundred members to a directory, of every kind, with
/// owners, modes, times, attributes and names that are easily lost.
///
/// Which kind a member has follows from its number alone, so that how many of
/// each there are is known without the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Members, by number from 0; the directories they are in come on top.
    pub files: u32,
    /// What they hold derives from it.
    pub seed: u64,
}

/// One file, link, directory or other member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Below the tree's root; not always UTF-8.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits with set-id and sticky bits; a symbolic link has none
    /// of its own.
    pub mode: u32,
    /// Its owner and group.
    pub owner: (u32, u32),
    /// When it was modified: seconds since 1970 and nanoseconds after them.
    pub mtime: (i64, u32),
    /// Extended attributes by name.
    pub xattrs: Vec<(&'static str, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file with this content.
    File(Vec<u8>),
    /// A regular file that is mostly a hole.
    Sparse {
        /// Its size in bytes.
        size: u64,
        /// Where its only data is.
        at: u64,
        /// That data.
        data: Vec<u8>,
    },
    /// Another name of the member with this number, which has its own owner,
    /// mode, time and attributes.
    HardLink(u32),
    /// A symbolic link, most of them to nothing.
    Link(Vec<u8>),
    /// An empty directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character device by major and minor number.
    CharDevice(u32, u32),
    /// A block device by major and minor number.
    BlockDevice(u32, u32),
}

/// Members in one directory.
const PER_DIRECTORY: u32 = 100;
/// Directories in one directory.
const PER_TOP: u32 = 25;

impl Archive {
    /// How many entries the tree has, directories of members included.
    pub fn entries(&self) -> u64 {
        u64::from(self.files) + self.directories().len() as u64
    }

    /// The directories that members are in, parents first.
    pub fn directories(&self) -> Vec<Member> {
        let mut out = Vec::new();
        for directory in 0..self.files.div_ceil(PER_DIRECTORY) {
            if directory % PER_TOP == 0 {
                out.push(self.parent(top(directory), u64::from(directory) << 32 | 1));
            }
            out.push(self.parent(below(directory), u64::from(directory) << 32 | 2));
        }
        out
    }

    fn parent(&self, path: String, salt: u64) -> Member {
        Member {
            path: path.into_bytes(),
            kind: MemberKind::Directory,
            mode: 0o755,
            owner: (0, 0),
            mtime: mtime(mix(&[self.seed, salt])),
            xattrs: Vec::new(),
        }
    }

    /// The member with this number.
    pub fn member(&self, number: u32) -> Member {
        let dice = mix(&[self.seed, number.into(), 0x7a2]);
        let mode = match dice % 8 {
            0 => 0o4755,
            1 => 0o2711,
            2 => 0o600,
            3 => 0o444,
            4 => 0,
            5 => 0o1777,
            _ => 0o644,
        };
        let mut member = Member {
            path: path(number),
            kind: self.kind(number, dice),
            mode,
            owner: [(0, 0), (1000, 1000), (65534, 7)][(dice >> 8) as usize % 3],
            mtime: mtime(dice),
            xattrs: Vec::new(),
        };
        if number % 16 == 6 {
            let value = text(&[dice, 0xa77], 5 + (dice >> 16) as usize % 100);
            member.xattrs.push(("user.plugpull", value.into_bytes()));
        }
        if number % 16 == 14 {
            // The group bits of a file with an access list are its mask.
            member.mode = 0o664;
            member
                .xattrs
                .push(("system.posix_acl_access", access_list()));
        }
        member
    }

    fn kind(&self, number: u32, dice: u64) -> MemberKind {
        match number % 32 {
            3 => MemberKind::Directory,
            7 => MemberKind::Link(text(&[dice, 0x7], 1 + (dice >> 20) as usize % 250).into_bytes()),
            // Number 8 of each 32 is a regular file.
            9 => MemberKind::HardLink(number - 1),
            11 => MemberKind::Fifo,
            19 if number % 64 == 19 => MemberKind::CharDevice(1, (dice >> 20) as u32 % 10),
            19 => MemberKind::BlockDevice(7, (dice >> 20) as u32 % 300),
            // Rare: a hole is read as often as it is looked at.
            23 if number % 160 == 23 => {
                let at = (1 + (dice >> 20) % 15) * 65_536;
                MemberKind::Sparse {
                    size: at + 131_072 + (dice >> 30) % 5_000,
                    at,
                    data: text(&[dice, 0x5], 5_000).into_bytes(),
                }
            }
            27 => MemberKind::File(Vec::new()),
            31 => MemberKind::File(text(&[dice, 0xb], 40_000).into_bytes()),
            _ => MemberKind::File(text(&[dice, 0xf], (dice >> 20) as usize % 5_000).into_bytes()),
        }
    }
}

fn top(directory: u32) -> String {
    format!("top-{}", directory / PER_TOP)
}

fn below(directory: u32) -> String {
    format!("{}/dir-{directory}", top(directory))
}

/// Some names are as long as names may be, some are no UTF-8, some are odd.
fn path(number: u32) -> Vec<u8> {
    let mut path = format!("{}/", below(number / PER_DIRECTORY)).into_bytes();
    let name = format!("member-{number}");
    path.extend_from_slice(name.as_bytes());
    match number % 50 {
        5 => path.extend(std::iter::repeat_n(b'x', 255 - name.len())),
        15 => path.extend_from_slice(b"-\xff\xfe\x80"),
        25 => path.extend_from_slice(b" with blanks\nand a line"),
        _ => {}
    }
    path
}

/// Before 1970, at 1970, after 2106, and ordinary times, most of them with
/// nanoseconds. All are within what ext4 with large inodes, XFS with bigtime
/// and Btrfs can hold: 1901 to 2446.
fn mtime(dice: u64) -> (i64, u32) {
    let nanos = (dice >> 12) as u32 % 1_000_000_000;
    let some = ((dice >> 40) % 100_000_000) as i64;
    match (dice >> 4) % 16 {
        0 => (-1_000_000_000 - some, nanos),
        1 => (-1, nanos),
        2 => (0, 0),
        3 => (5_000_000_000 + some, nanos),
        _ => (1_000_000_000 + some, nanos),
    }
}

/// `user::rw-,user:1000:r--,group::r--,mask::rw-,other::r--` as the kernel
/// takes it (include/uapi/linux/posix_acl_xattr.h).
fn access_list() -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, NOBODY),
        (0x02, 4, 1000),
        (0x04, 4, NOBODY),
        (0x10, 6, NOBODY),
        (0x20, 4, NOBODY),
    ];
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_small_tree_has_everything() {
        let plan = Archive {
            files: 320,
            seed: 9,
        };
        let all: Vec<_> = (0..plan.files).map(|n| plan.member(n)).collect();
        let has = |what: &dyn Fn(&Member) -> bool| assert!(all.iter().any(what));
        has(&|m| matches!(m.kind, MemberKind::CharDevice(..)));
        has(&|m| matches!(m.kind, MemberKind::BlockDevice(..)));
        has(&|m| matches!(m.kind, MemberKind::Sparse { .. }));
        has(&|m| matches!(&m.kind, MemberKind::File(content) if content.is_empty()));
        has(&|m| m.mtime.0 < -1);
        has(&|m| m.mtime.0 > i64::from(u32::MAX));
        has(&|m| m.mode == 0o4755);
        has(&|m| m.xattrs.len() == 1);
        has(&|m| std::str::from_utf8(&m.path).is_err());
        has(&|m| {
            m.path
                .rsplit(|b| *b == b'/')
                .next()
                .is_some_and(|n| n.len() == 255)
        });
        for member in &all {
            if let MemberKind::HardLink(to) = member.kind {
                assert!(matches!(plan.member(to).kind, MemberKind::File(_)));
            }
            if member.xattrs.len() == 1 {
                assert!(matches!(member.kind, MemberKind::File(_)), "{member:?}");
            }
        }
        let paths: BTreeSet<_> = all.iter().map(|m| &m.path).collect();
        assert_eq!(paths.len(), 320);
        assert_eq!(plan.entries(), 320 + 4 + 1);
    }
}
