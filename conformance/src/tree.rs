//! Whole directory trees as values: what two filesystems must agree on in the end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, SeekFrom, StatxFlags, lgetxattr, llistxattr, seek, statfs, statx};

use crate::known::{KnownDifference, Tolerance};
use crate::outcome::{Stat, hash};

/// Everything about one name that does not differ by right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    stat: Stat,
    blocks: Blocks,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Hash of the target of a symlink, or of the contents of a file.
    contents: u64,
    /// The first name of the same inode.
    same_as: PathBuf,
    /// Whether it lies on the device of the tree's root.
    same_device: bool,
}

/// The 512-byte blocks of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    count: u64,
    /// By how many more or fewer it may differ, for what is reserved beyond the end.
    reserved: u64,
}

/// Blocks of the extent tree, which depend on how writes were split.
const EXTENT_TREE: u64 = 64;

/// What XFS reserves at least beyond the end of a file when a write extends it, 64 KiB; for
/// a larger file as much as that has (xfs(5), `allocsize`). It gives that back when it likes,
/// and a server that is handed a write in two parts extends the file twice.
const XFS_BEYOND_THE_END: u64 = 128;

/// `XFS_SUPER_MAGIC` (statfs(2)).
const XFS: i64 = 0x5846_5342;

/// A tree, by path below its root.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

/// Reads the tree below `root`, all of it.
///
/// # Errors
/// If anything in it cannot be read.
pub(crate) fn read(root: &Path) -> Result<Tree> {
    let kind = statfs(root).with_context(|| format!("{}", root.display()))?;
    let mut reader = Reader {
        root,
        is_xfs: kind.f_type == XFS,
        tree: Tree::new(),
        first_names: BTreeMap::new(),
    };
    let device = fs::metadata(root)
        .with_context(|| format!("{}", root.display()))?
        .dev();
    reader.walk(Path::new(""), device)?;
    Ok(reader.tree)
}

struct Reader<'a> {
    root: &'a Path,
    is_xfs: bool,
    tree: Tree,
    first_names: BTreeMap<u64, PathBuf>,
}

impl Reader<'_> {
    fn walk(&mut self, below: &Path, device: u64) -> Result<()> {
        let path = self.root.join(below);
        let directory = fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
        let names: std::io::Result<Vec<_>> = directory
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect();
        let mut names = names.with_context(|| format!("list {}", path.display()))?;
        names.sort();
        for name in names {
            let below = below.join(name);
            let path = self.root.join(&below);
            let entry = self.entry(&path, &below, device);
            let entry = entry.with_context(|| format!("look at {}", path.display()))?;
            let is_directory = fs::symlink_metadata(&path)?.is_dir();
            self.tree.insert(below.clone(), entry);
            if is_directory {
                self.walk(&below, device)?;
            }
        }
        Ok(())
    }

    fn blocks(&self, metadata: &fs::Metadata) -> Blocks {
        let count = if metadata.is_file() {
            metadata.blocks()
        } else {
            0
        };
        let reserved = if self.is_xfs {
            XFS_BEYOND_THE_END.max(count.next_power_of_two())
        } else {
            0
        };
        Blocks { count, reserved }
    }

    fn entry(&mut self, path: &Path, below: &Path, device: u64) -> Result<Entry> {
        // Before anything is read, which would change the time of access.
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = Stat::of(&statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, mask)?);
        let metadata = fs::symlink_metadata(path)?;
        let contents = if metadata.is_file() {
            let file = File::open(path)?;
            contents(&file, metadata.len())?
        } else if metadata.is_symlink() {
            hash(fs::read_link(path)?.as_os_str().as_bytes())
        } else {
            u64::from(metadata.file_type().is_fifo())
        };
        let blocks = self.blocks(&metadata);
        let first = self
            .first_names
            .entry(metadata.ino())
            .or_insert_with(|| below.to_owned());
        Ok(Entry {
            stat,
            blocks,
            xattrs: xattrs(path)?,
            contents,
            same_as: first.clone(),
            same_device: metadata.dev() == device,
        })
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; 65536];
    let count = llistxattr(path, &mut list[..])?;
    let mut xattrs = BTreeMap::new();
    for name in list[..count]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 65536];
        let count = lgetxattr(path, name, &mut value[..])?;
        value.truncate(count);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

/// A hash of the blocks that are not all zeros and their places: a hole and zeros are
/// the same contents. Holes are skipped, so a file of gigabytes costs what it holds.
fn contents(file: &File, size: u64) -> Result<u64> {
    const BLOCK: usize = 64 << 10;
    let (mut sum, mut at, mut block) = (0u64, 0, vec![0; BLOCK]);
    while at < size {
        at = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / BLOCK as u64 * BLOCK as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).context("lseek SEEK_DATA"),
        };
        let end = usize::try_from(size.saturating_sub(at))
            .unwrap_or(BLOCK)
            .min(BLOCK);
        file.read_exact_at(&mut block[..end], at)
            .with_context(|| format!("read {end} bytes at {at}"))?;
        for (index, piece) in block[..end].chunks(4096).enumerate() {
            let place = at + (index * 4096) as u64;
            if piece.iter().any(|byte| *byte != 0) {
                sum = sum.wrapping_mul(31) ^ hash(piece) ^ place;
            }
        }
        at += BLOCK as u64;
    }
    Ok(sum)
}

/// The first difference between two trees, as a sentence; known ones are counted.
///
/// # Errors
/// That difference.
pub(crate) fn compare(
    mount: &Tree,
    plain: &Tree,
    tolerance: Tolerance,
    mut known: impl FnMut(&'static KnownDifference),
) -> Result<(), String> {
    for (path, expected) in plain {
        let Some(found) = mount.get(path) else {
            return Err(format!("{} is missing", path.display()));
        };
        let (found, differences) = tolerance.entry(found, expected);
        differences.into_iter().for_each(&mut known);
        if found != *expected {
            let path = path.display();
            return Err(format!(
                "{path} is\n    {found:?}\n  should be\n    {expected:?}"
            ));
        }
    }
    match mount.keys().find(|path| !plain.contains_key(*path)) {
        Some(path) => Err(format!("{} should not be there", path.display())),
        None => Ok(()),
    }
}

impl Entry {
    pub(crate) fn stat_mut(&mut self) -> &mut Stat {
        &mut self.stat
    }

    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Takes the blocks for equal to those of `plain` if they differ by no more than they
    /// may there: by those of the extent tree, and by what XFS reserves behind the end as
    /// it sees fit (`xfs_iomap_prealloc_size`), which stays for good once fallocate(2) has
    /// marked the file (`XFS_DIFLAG_PREALLOC`). Whether all is there that fallocate(2) was
    /// asked for, other filesystems below show.
    pub(crate) fn settle_blocks(&mut self, plain: &Entry) {
        let differ = EXTENT_TREE + plain.blocks.reserved;
        let (least, most) = (
            plain.blocks.count.saturating_sub(differ),
            plain.blocks.count + differ,
        );
        if (least..=most).contains(&self.blocks.count) {
            self.blocks = plain.blocks;
        }
    }

    /// Takes the blocks for equal to those of `plain` if there are more; whether there were.
    pub(crate) fn settle_more_blocks(&mut self, plain: &Entry) -> bool {
        let more = self.blocks.count > plain.blocks.count;
        if more {
            self.blocks = plain.blocks;
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether so many blocks pass for those of a plain file.
    fn settles(mount: u64, plain: Blocks) -> bool {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        let entry = |blocks| {
            let mut tree = read(dir.path()).unwrap();
            let mut entry = tree.remove(Path::new("f")).unwrap();
            entry.blocks = blocks;
            entry
        };
        let mut found = entry(Blocks {
            count: mount,
            reserved: 0,
        });
        let plain = entry(plain);
        found.settle_blocks(&plain);
        found == plain
    }

    #[test]
    fn blocks_may_differ_by_what_is_reserved() {
        let ext4 = Blocks {
            count: 2056,
            reserved: 0,
        };
        let xfs = Blocks {
            reserved: 4096,
            ..ext4
        };
        assert_eq!(
            [2120, 2121].map(|found| settles(found, ext4)),
            [true, false]
        );
        assert_eq!([6216, 6217].map(|found| settles(found, xfs)), [true, false]);
        assert_eq!(
            [1992, 1991].map(|found| settles(found, ext4)),
            [true, false]
        );
        let xfs = Blocks { count: 8192, ..xfs };
        assert_eq!([4032, 4031].map(|found| settles(found, xfs)), [true, false]);
    }
}
