//! A directory tree as an ext4 file system in a file, by `mke2fs -d`, without
//! mounting anything.
//!
//! The result is for reading only: no journal, no reserved blocks, no room for
//! growth. The features are spelt out, because the host's mke2fs.conf(5) must
//! not decide what a guest's older kernel has to understand.
//!
//! The same tree gives the same bytes: mke2fs copies the times of the tree,
//! which say when it was unpacked, so debugfs(8) sets them to the epoch
//! afterwards. Without privilege everything in the tree is ours, and debugfs
//! gives it to root.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::ContentHash;
use crate::host;

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
const DEADLINE: Duration = Duration::from_secs(600);
const FEATURES: &str = "none,extent,dir_index,filetype,sparse_super,large_file,huge_file,flex_bg,64bit,extra_isize,\
                        dir_nlink,ext_attr,metadata_csum";

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in whole blocks.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

impl Usage {
    /// Adds up a tree. A hard link's content counts once per name, which only
    /// errs towards too large.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn of(dir: &Path) -> io::Result<Usage> {
        let mut usage = Usage::default();
        usage.add_tree(dir)?;
        Ok(usage)
    }

    fn add_tree(&mut self, dir: &Path) -> io::Result<()> {
        self.add(&fs::symlink_metadata(dir)?);
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.add_tree(&entry.path())?;
            } else {
                self.add(&entry.metadata()?);
            }
        }
        Ok(())
    }

    fn add(&mut self, metadata: &Metadata) {
        self.inodes += 1;
        self.bytes += metadata.size().next_multiple_of(BLOCK);
    }

    /// The size of a file system that holds this and `headroom` bytes.
    pub fn file_system_size(self, headroom: u64) -> u64 {
        let inode_tables = self.inode_count() * INODE;
        // Bitmaps, group descriptors, extent blocks: under 1/64 of the data.
        let overhead = (4 << 20) + self.bytes / 64;
        (self.bytes + inode_tables + overhead + headroom).next_multiple_of(1 << 20)
    }

    fn inode_count(self) -> u64 {
        self.inodes + self.inodes / 16 + 64
    }
}

/// A file system to be made.
#[derive(Debug, Clone, Copy)]
pub struct FileSystem<'a> {
    /// Its content; everything belongs to root, unless we are root and it
    /// belongs to somebody else.
    pub tree: &'a Path,
    /// At most 16 bytes.
    pub label: &'a str,
    /// Bytes, a multiple of 1 MiB.
    pub size: u64,
    /// What the UUID and the hash seed of directories are made from.
    pub seed: &'a ContentHash,
}

impl FileSystem<'_> {
    /// Makes it in the file `image`, which must not exist; sparse.
    ///
    /// # Errors
    /// When the tree does not fit, or mke2fs fails.
    pub fn make(&self, image: &Path) -> Result<()> {
        let usage = Usage::of(self.tree)
            .with_context(|| format!("cannot add up {}", self.tree.display()))?;
        let least = usage.file_system_size(0);
        ensure!(
            least <= self.size,
            "{} does not fit: it needs {} MiB and the file system {:?} has {} MiB",
            self.tree.display(),
            least >> 20,
            self.label,
            self.size >> 20
        );
        let uuid = uuid(self.seed);
        host::command("mke2fs")
            .args([
                "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", FEATURES,
            ])
            .args(["-N", &usage.inode_count().to_string()])
            .args(["-L", self.label, "-U", &uuid])
            .args([
                "-E",
                &format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,nodiscard"),
            ])
            .args(["-d".as_ref(), self.tree.as_os_str(), image.as_os_str()])
            .arg(format!("{}k", self.size >> 10))
            // The time of making is no part of the content.
            .env("E2FSPROGS_FAKE_TIME", "1")
            .run(DEADLINE)?;
        let everything_is_ours = !rustix::process::geteuid().is_root();
        normalise(self.tree, image, everything_is_ours)
    }
}

/// Sets times to the epoch, and with `to_root` owners to root, of everything in
/// the image that is in the tree.
fn normalise(tree: &Path, image: &Path, to_root: bool) -> Result<()> {
    let mut fields = vec!["atime", "ctime", "mtime"];
    if to_root {
        fields.extend(["uid", "gid"]);
    }
    let mut script = String::new();
    collect_changes(tree, "", &fields, &mut script)?;
    let output = host::command("debugfs")
        .args([
            "-w".as_ref(),
            "-f".as_ref(),
            "-".as_ref(),
            image.as_os_str(),
        ])
        .stdin(script)
        .env("E2FSPROGS_FAKE_TIME", "1")
        .run(DEADLINE)?;
    // debugfs succeeds whatever its commands do; beyond its banner, what it says
    // on standard error are their complaints.
    let complaint = output
        .stderr_text()
        .lines()
        .find(|line| !line.starts_with("debugfs "))
        .map(str::to_owned);
    ensure!(
        complaint.is_none(),
        "debugfs could not set a field: {}",
        complaint.unwrap_or_default()
    );
    Ok(())
}

fn collect_changes(dir: &Path, below: &str, fields: &[&str], script: &mut String) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name
            .to_str()
            .filter(|name| !name.contains(['"', '\n', '\\']));
        let name = name.with_context(|| format!("odd file name: {}", entry.path().display()))?;
        let path = format!("{below}/{name}");
        for field in fields {
            script.push_str(&format!(
                "sif \"{path}\" {field} 0
"
            ));
        }
        if entry.file_type()?.is_dir() {
            collect_changes(&entry.path(), &path, fields, script)?;
        }
    }
    Ok(())
}

/// The first half of a hash in the shape of a random UUID (RFC 9562, version 8).
fn uuid(seed: &ContentHash) -> String {
    let digits = seed.as_str();
    format!(
        "{}-{}-8{}-8{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..32]
    )
}

#[cfg(test)]
mod tests {
    //! What is made is looked into with debugfs(8), of the same package.

    use super::*;
    use crate::process::Cmd;

    fn debugfs(image: &Path, request: &str) -> String {
        let cmd =
            host::command("debugfs").args(["-R".as_ref(), request.as_ref(), image.as_os_str()]);
        cmd.run(Duration::from_secs(30)).unwrap().stdout_text()
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/a file"), "content").unwrap();
        dir
    }

    fn make(tree: &Path, size: u64, image: &Path) -> Result<()> {
        FileSystem {
            tree,
            label: "test",
            size,
            seed: &ContentHash::of("seed"),
        }
        .make(image)
    }

    #[test]
    fn a_tree_becomes_a_file_system_with_its_content() {
        let (tree, out) = (tree(), tempfile::tempdir().unwrap());
        let image = out.path().join("image");
        make(tree.path(), 16 << 20, &image).unwrap();
        assert_eq!(debugfs(&image, "cat \"/etc/a file\""), "content");
        assert!(debugfs(&image, "stat \"/etc/a file\"").contains("User:     0   Group:     0"));
        // Other change times, which cannot be set.
        let later = Duration::from_secs(10);
        Cmd::new("sleep").arg("1.1").run(later).unwrap();
        let tree = self::tree();
        let again = out.path().join("again");
        make(tree.path(), 16 << 20, &again).unwrap();
        assert_eq!(
            ContentHash::of_file(&image).unwrap(),
            ContentHash::of_file(&again).unwrap()
        );
        host::command("e2fsck")
            .args(["-f", "-n"])
            .arg(&image)
            .run(Duration::from_secs(30))
            .unwrap();
    }

    #[test]
    fn owners_can_be_set_in_the_image() {
        let (tree, out) = (tree(), tempfile::tempdir().unwrap());
        let image = out.path().join("image");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(tree.path().join("etc/a file"), Some(1234), Some(1234))
                .unwrap();
        }
        make(tree.path(), 16 << 20, &image).unwrap();
        normalise(tree.path(), &image, true).unwrap();
        assert!(debugfs(&image, "stat \"/etc/a file\"").contains("User:     0   Group:     0"));
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("not in the image"), "").unwrap();
        assert!(
            normalise(other.path(), &image, true).is_err(),
            "debugfs complained to nobody"
        );
    }

    #[test]
    fn what_does_not_fit_is_said_in_mebibytes() {
        let (tree, out) = (tree(), tempfile::tempdir().unwrap());
        fs::File::create(tree.path().join("big"))
            .unwrap()
            .set_len(20 << 20)
            .unwrap();
        let error = make(tree.path(), 16 << 20, &out.path().join("image")).unwrap_err();
        let expected = format!(
            "{} does not fit: it needs 25 MiB and the file system \"test\" has 16 MiB",
            tree.path().display()
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn uuids_are_well_formed() {
        assert_eq!(
            uuid(&ContentHash::of("abc")),
            "ba7816bf-8f01-8fea-8141-40de5dae2223"
        );
    }
}
