//! Lists a tree, a page at a time.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use plugpull_protocol::Observation;
use plugpull_protocol::workload::{EntryKind, TreeEntry, user};
use sha2::{Digest, Sha256};

/// Bytes of encoded entries after which a page ends; well below the channel's
/// limit, with one longest path to spare.
const PAGE_BYTES: usize = 700 << 10;

/// What an encoded entry takes beside its path and hash.
const ENTRY_BYTES: usize = 100;

/// List the entries below `dir` that come after `after`, sorted by their raw
/// path, until a page is full.
pub(super) fn list(dir: &Path, after: Option<&str>, contents: bool) -> anyhow::Result<Observation> {
    let mut paths = Vec::new();
    walk(dir, Path::new(""), &mut paths)?;
    paths.sort_unstable();
    let first = match after {
        None => 0,
        Some(after) => {
            let after = decode(after)?;
            paths.partition_point(|path| path.as_os_str().as_bytes() <= after.as_slice())
        }
    };
    let mut entries: Vec<TreeEntry> = Vec::new();
    let mut bytes = 0;
    let mut next = None;
    for path in &paths[first..] {
        if bytes > PAGE_BYTES {
            next = entries.last().map(|last| last.path.clone());
            break;
        }
        let entry = entry(dir, path, contents)?;
        bytes += entry.path.len() + entry.sha256.as_ref().map_or(0, String::len) + ENTRY_BYTES;
        entries.push(entry);
    }
    Ok(Observation::Tree { entries, next })
}

/// Collect every path below `root`, relative to it.
fn walk(root: &Path, below: &Path, paths: &mut Vec<Raw>) -> anyhow::Result<()> {
    let dir = root.join(below);
    let entries = dir.read_dir();
    for entry in entries.with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let path = below.join(entry.file_name());
        let kind = entry.file_type();
        let kind = kind.with_context(|| format!("look at {}", root.join(&path).display()))?;
        if kind.is_dir() {
            walk(root, &path, paths)?;
        }
        paths.push(Raw(path.into_os_string().into_vec()));
    }
    Ok(())
}

/// A path that sorts by its bytes, where `Path` would sort by component.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Raw(Vec<u8>);

impl Raw {
    fn as_os_str(&self) -> &std::ffi::OsStr {
        std::ffi::OsStr::from_bytes(&self.0)
    }
}

fn entry(root: &Path, path: &Raw, contents: bool) -> anyhow::Result<TreeEntry> {
    let full: PathBuf = root.join(path.as_os_str());
    let meta = full.symlink_metadata();
    let meta = meta.with_context(|| format!("look at {}", full.display()))?;
    let (kind, sha256) = if meta.is_file() {
        (EntryKind::File, contents.then(|| hash_file(&full)))
    } else if meta.is_dir() {
        (EntryKind::Directory, None)
    } else if meta.is_symlink() {
        (EntryKind::Link, contents.then(|| hash_link(&full)))
    } else {
        (EntryKind::Other, None)
    };
    Ok(TreeEntry {
        path: user::encode(&path.0),
        kind,
        mode: meta.permissions().mode() & 0o7777,
        size: if kind == EntryKind::File {
            meta.len()
        } else {
            0
        },
        sha256: sha256.transpose()?,
    })
}

fn hash_file(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer);
        match n.with_context(|| format!("read {}", path.display()))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hash_link(path: &Path) -> anyhow::Result<String> {
    let target = path.read_link();
    let target = target.with_context(|| format!("read the link {}", path.display()))?;
    Ok(hex(&Sha256::digest(target.as_os_str().as_bytes())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(path: &str) -> anyhow::Result<Vec<u8>> {
    user::decode(path.as_bytes()).map_err(|why| anyhow::anyhow!("{path}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn listed(dir: &Path, after: Option<&str>) -> (Vec<TreeEntry>, Option<String>) {
        match list(dir, after, true).expect("listed") {
            Observation::Tree { entries, next } => (entries, next),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_entry_is_listed_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("d")).expect("made");
        std::fs::write(at("d/x"), b"abc").expect("written");
        std::fs::write(at("d.x"), b"").expect("written");
        symlink("nowhere", at("link")).expect("linked");
        let odd = std::ffi::OsStr::from_bytes(b"odd \xff%");
        std::fs::write(dir.path().join(odd), b"1").expect("written");
        std::fs::set_permissions(at("d.x"), PermissionsExt::from_mode(0o640)).expect("set");

        let (entries, next) = listed(dir.path(), None);
        assert_eq!(next, None);
        let paths: Vec<_> = entries.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["d", "d.x", "d/x", "link", "odd%20%FF%25"]);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(entries[2].sha256.as_deref(), Some(abc));
        assert_eq!((entries[1].mode, entries[1].size), (0o640, 0));
        assert_eq!(entries[3].kind, EntryKind::Link);

        let (rest, _) = listed(dir.path(), Some("d/x"));
        assert_eq!(rest, entries[3..]);
        assert!(listed(dir.path(), Some("odd%20%FF%25")).0.is_empty());
    }

    #[test]
    fn a_tree_too_large_for_one_message_comes_in_pages() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = "n".repeat(240);
        for i in 0..2500 {
            std::fs::write(dir.path().join(format!("{long}{i}")), b"x").expect("written");
        }
        let mut all = Vec::new();
        let mut after = None;
        let mut pages = 0;
        loop {
            let (entries, next) = listed(dir.path(), after.as_deref());
            let page = Observation::Tree {
                entries: entries.clone(),
                next: next.clone(),
            };
            let encoded = serde_json::to_vec(&page).expect("encoded");
            assert!(encoded.len() < plugpull_protocol::frame::MAX_LEN as usize);
            all.extend(entries);
            pages += 1;
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(all.len(), 2500);
        assert!(pages > 1);
        assert!(all.is_sorted_by(|a, b| a.path < b.path));
    }
}
