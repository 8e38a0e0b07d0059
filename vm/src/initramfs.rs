//! The initramfs: our static guest binary as `/init`, and the modules it takes
//! to reach the root disk.
//!
//! An uncompressed cpio archive (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst), in memory of
//! the guest before its first instruction, so there is nothing to unpack but the
//! archive itself. The same content gives the same bytes.

mod cpio;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cache::{ContentHash, Home, KeyHasher, publish_bytes};
use crate::image::Image;

use cpio::Archive;

/// Lists what init loads from the initramfs, one absolute path a line, in order.
pub const MODULES: &str = "etc/plugpull/modules";
/// Lists what init loads from the root disk once it is mounted: absolute paths
/// on that disk, in order.
pub const MODULES_LATE: &str = "etc/plugpull/modules-late";
/// Directories init mounts things on.
const DIRS: [&str; 6] = ["dev", "proc", "sys", "newroot", "etc", "run"];

/// A file for the initramfs besides init and modules, readable and not
/// executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Its path in the guest, with or without the leading slash.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The initramfs of an image and a guest binary; made if it is not cached.
///
/// # Errors
/// When the binary or a module cannot be read, or is not what it should be.
pub fn build(home: &Home, image: &Image, guest: &Path, extra: &[Extra]) -> Result<PathBuf> {
    let init = fs::read(guest)
        .with_context(|| format!("cannot read the guest binary {}", guest.display()))?;
    ensure!(
        is_static(&init),
        "{} is not a static x86-64 ELF binary, so it cannot be init",
        guest.display()
    );
    let archive = assemble(image, init, extra)?;
    let bytes = archive.to_bytes();
    let key: ContentHash = KeyHasher::new("initramfs")
        .field("content", &bytes)
        .finish();
    let path = home
        .cache
        .join("initramfs")
        .join(format!("{}-{}.cpio", image.name, key.short()));
    if !path.exists() {
        publish_bytes(&path, &bytes)?;
    }
    Ok(path)
}

fn assemble(image: &Image, init: Vec<u8>, extra: &[Extra]) -> Result<Archive> {
    let mut archive = Archive::default();
    for dir in DIRS {
        archive.dir(dir, 0o755);
    }
    // The kernel opens it before init runs, and there is no devtmpfs yet.
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, init);
    let release = image.kernel_release();
    let absolute = |path: &String| format!("/usr/lib/modules/{release}/{path}\n");
    for path in &image.manifest.modules_early {
        let from = image.modules_dir.join(path);
        let module = fs::read(&from)
            .with_context(|| format!("cannot read the module {}", from.display()))?;
        archive.file(absolute(path).trim().trim_start_matches('/'), 0o644, module);
    }
    let list = |paths: &[String]| paths.iter().map(absolute).collect::<String>().into_bytes();
    archive.file(MODULES, 0o644, list(&image.manifest.modules_early));
    archive.file(MODULES_LATE, 0o644, list(&image.manifest.modules_late));
    for Extra { path, bytes } in extra {
        archive.file(path.trim_start_matches('/'), 0o644, bytes.clone());
    }
    Ok(archive)
}

/// Whether these bytes are an x86-64 ELF executable that names no interpreter.
fn is_static(elf: &[u8]) -> bool {
    const INTERPRETER: usize = 3;
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| (value << 8) | usize::from(*byte)),
        )
    };
    let segments = || -> Option<bool> {
        // ELF-64: the program headers' place, size and count.
        let (at, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut kinds = (0..count).map(|index| number(at.checked_add(index * size)?, 4));
        Some(kinds.all(|kind| kind.is_some_and(|kind| kind != INTERPRETER)))
    };
    let x86_64 = elf.starts_with(b"\x7fELF\x02\x01") && number(18, 2) == Some(62);
    x86_64 && segments() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageName, Manifest};

    fn image(dir: &Path) -> Image {
        let module = "kernel/fs/ext4/ext4.ko";
        let modules_dir = dir.join("modules");
        fs::create_dir_all(modules_dir.join(module).parent().unwrap()).unwrap();
        fs::write(modules_dir.join(module), "a module").unwrap();
        Image {
            name: ImageName::new("test").unwrap(),
            dir: dir.to_owned(),
            vmlinuz: dir.join("vmlinuz"),
            root_img: dir.join("root.img"),
            modules_dir,
            manifest: Manifest {
                name: "test".into(),
                kernel_release: "6.1.0".into(),
                packages_hash: ContentHash::of(""),
                lock_not_kept: None,
                loosened_checks: Vec::new(),
                built_with: Vec::new(),
                postgres_bin: "/".into(),
                modules_early: vec![module.into()],
                modules_late: vec!["kernel/fs/xfs/xfs.ko".into()],
                packages: Vec::new(),
            },
        }
    }

    /// A static binary as far as its headers tell: no program headers at all.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf
    }

    #[test]
    fn it_holds_init_modules_and_their_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Cargo.toml"), "[workspace]\n").unwrap();
        let home = Home::above(dir.path(), None, None).unwrap();
        let guest = dir.path().join("guest");
        fs::write(&guest, elf()).unwrap();
        let extra = [Extra {
            path: "/etc/plugpull/more".into(),
            bytes: b"more".to_vec(),
        }];
        let image = image(dir.path());
        let path = build(&home, &image, &guest, &extra).unwrap();
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        for part in [
            "init\0",
            "dev/console\0",
            "usr/lib/modules/6.1.0/kernel/fs/ext4/ext4.ko\0",
            "a module",
            "/usr/lib/modules/6.1.0/kernel/fs/ext4/ext4.ko\n",
            "/usr/lib/modules/6.1.0/kernel/fs/xfs/xfs.ko\n",
            "etc/plugpull/more\0",
        ] {
            assert!(text.contains(part), "no {part:?}");
        }
        assert_eq!(build(&home, &image, &guest, &extra).unwrap(), path);
        assert_ne!(build(&home, &image, &guest, &[]).unwrap(), path);
    }

    #[test]
    fn a_dynamic_binary_cannot_be_init() {
        assert!(is_static(&elf()));
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own), "this test is linked dynamically");
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&elf()[..40]));
        let mut cut = elf();
        cut[56] = 3;
        cut[32] = 200;
        assert!(!is_static(&cut), "its program headers lie outside");
    }
}
