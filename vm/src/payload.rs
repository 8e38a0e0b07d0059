//! The payload disk: host files on a small read-only ext4, so that rebuilding
//! one of them changes no template. Its size is fixed, because the shape of
//! disks is part of a template's key.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{ContentHash, Home, KeyHasher, publish_dir};
use crate::host;
use crate::image::ext4::FileSystem;

/// The file system's label.
pub const LABEL: &str = "payload";
/// Bytes, whatever is on it; sparse on the host.
pub const SIZE: u64 = 128 << 20;
/// What to raise when the same files give another disk.
const BUILDER_VERSION: &str = "1";

/// A file for the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFile {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Its path on the disk, relative to the disk's root.
    pub guest: PathBuf,
    /// Permission bits, for instance `0o755`.
    pub mode: u32,
}

/// The payload disk of these files; made if it is not cached.
///
/// # Errors
/// When a file cannot be read, two share a place, or they do not fit.
pub fn build(home: &Home, files: &[PayloadFile]) -> Result<PathBuf> {
    let mut files = files.to_vec();
    files.sort_by(|a, b| a.guest.cmp(&b.guest));
    for pair in files.windows(2) {
        ensure!(
            pair[0].guest != pair[1].guest,
            "two payload files want to be {}",
            pair[0].guest.display()
        );
    }
    let mut key = KeyHasher::new("payload")
        .field("builder", BUILDER_VERSION)
        .field("size", SIZE.to_le_bytes());
    for file in &files {
        check_place(&file.guest)?;
        key = key
            .field("path", file.guest.as_os_str().as_encoded_bytes())
            .field("mode", file.mode.to_le_bytes())
            .field("content", ContentHash::of_file(&file.host)?.as_str());
    }
    let key = key.finish();
    let dir = home.cache.join("payload").join(key.short());
    let image = dir.join("payload.img");
    if !image.exists() {
        publish_dir(&dir, |beside| make(&files, &key, beside))
            .map_err(|error| host::name_full_disk(error, &home.cache, "making the payload disk"))?;
    }
    Ok(image)
}

fn make(files: &[PayloadFile], key: &ContentHash, beside: &Path) -> Result<()> {
    let tree = beside.join("tree");
    fs::create_dir(&tree)?;
    for PayloadFile { host, guest, mode } in files {
        let to = tree.join(guest);
        fs::create_dir_all(to.parent().unwrap_or(&tree))?;
        fs::copy(host, &to).with_context(|| format!("cannot copy {}", host.display()))?;
        fs::set_permissions(&to, Permissions::from_mode(*mode))?;
    }
    FileSystem {
        tree: &tree,
        label: LABEL,
        size: SIZE,
        seed: key,
    }
    .make(&beside.join("payload.img"))?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

fn check_place(guest: &Path) -> Result<()> {
    let inside = guest
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !inside || guest.as_os_str().is_empty() {
        bail!(
            "{} is no path inside the payload: relative, without \"..\"",
            guest.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    fn home(dir: &Path) -> Home {
        fs::write(dir.join("Cargo.toml"), "[workspace]\n").unwrap();
        Home::above(dir, None, None).unwrap()
    }

    fn file(host: &Path, guest: &str) -> PayloadFile {
        PayloadFile {
            host: host.to_owned(),
            guest: guest.into(),
            mode: 0o755,
        }
    }

    #[test]
    fn files_get_their_places_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let source = dir.path().join("source");
        fs::write(&source, "first").unwrap();
        let first = build(&home, &[file(&source, "bin/program")]).unwrap();
        let look = |image: &Path, request: &str| {
            let cmd =
                host::command("debugfs").args(["-R".as_ref(), request.as_ref(), image.as_os_str()]);
            cmd.run(Duration::from_secs(30)).unwrap().stdout_text()
        };
        assert_eq!(look(&first, "cat /bin/program"), "first");
        let stat = look(&first, "stat /bin/program");
        assert!(
            stat.contains("Mode:  0755") && stat.contains("User:     0"),
            "{stat}"
        );
        assert_eq!(fs::metadata(&first).unwrap().len(), SIZE);
        let bytes = ContentHash::of_file(&first).unwrap();
        fs::remove_dir_all(first.parent().unwrap()).unwrap();
        let again = build(&home, &[file(&source, "bin/program")]).unwrap();
        assert_eq!(
            ContentHash::of_file(&again).unwrap(),
            bytes,
            "made twice, made differently"
        );
        fs::write(&source, "second").unwrap();
        let second = build(&home, &[file(&source, "bin/program")]).unwrap();
        assert_ne!(first, second);
        assert_eq!(look(&second, "cat /bin/program"), "second");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let source = dir.path().join("source");
        File::create(&source).unwrap().set_len(SIZE).unwrap();
        let refused = |files: &[PayloadFile]| format!("{:#}", build(&home, files).unwrap_err());
        assert!(refused(&[file(&source, "big")]).contains("does not fit"));
        assert_eq!(
            refused(&[file(&source, "../x")]),
            "../x is no path inside the payload: relative, without \"..\""
        );
        assert!(refused(&[file(&source, "/x")]).contains("is no path inside"));
        assert_eq!(
            refused(&[file(&source, "x"), file(&source, "x")]),
            "two payload files want to be x"
        );
        assert!(refused(&[file(&dir.path().join("absent"), "x")]).contains("absent"));
    }
}
