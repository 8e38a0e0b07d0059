//! What becomes of unpacked packages until they are a guest's root disk: what
//! their maintainer scripts would have done, and what goes.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host;

const DEADLINE: Duration = Duration::from_secs(120);

/// Users of every guest. The numbers are fixed: a data disk made with one image
/// can be read with another.
const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
postgres:x:105:110:PostgreSQL:/var/lib/postgresql:/bin/sh
user:x:1000:1000:an ordinary user:/tmp:/bin/sh
other:x:1001:1001:another ordinary user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

const GROUP: &str = "\
root:x:0:
daemon:x:1:
tty:x:5:
disk:x:6:
shadow:x:42:
postgres:x:110:
user:x:1000:
other:x:1001:
nogroup:x:65534:
";

/// Files that a maintainer script or an administrator would write.
const FILES: [(&str, &str); 7] = [
    ("etc/passwd", PASSWD),
    ("etc/group", GROUP),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    ),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", "plugpull\n"),
    ("etc/fuse.conf", "user_allow_other\n"),
    ("etc/fstab", ""),
];

/// Links: path, target.
const LINKS: [(&str, &str); 6] = [
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("etc/mtab", "../proc/self/mounts"),
    ("usr/bin/sh", "dash"),
    ("usr/bin/awk", "gawk"),
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
];

/// Mount points for the guest's init and its scenarios; the root is read-only.
const DIRS: [&str; 12] = [
    "dev", "proc", "sys", "run", "tmp", "mnt", "newroot", "payload", "data", "base", "root", "etc",
];

/// What no guest opens: documentation, translations, the other init system,
/// PostgreSQL's compiler (it runs without, more slowly on long queries).
const UNUSED: [&str; 24] = [
    "boot",
    "var/cache",
    "var/lib/apt",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/i18n",
    "usr/share/icons",
    "usr/share/pixmaps",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/zsh",
    "usr/share/bug",
    "usr/share/initramfs-tools",
    "usr/share/postgresql-common/server",
    "usr/share/pam-configs",
    "usr/lib/systemd",
    "usr/lib/udev/hwdb.d",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/systemd",
    "usr/lib/firmware",
    "usr/lib/klibc",
];

/// Beginnings of file names in a directory, which go too.
const UNUSED_FILES: [(&str, &str); 4] = [
    ("usr/lib/x86_64-linux-gnu", "libLLVM"),
    ("usr/lib/x86_64-linux-gnu", "libz3.so"),
    ("usr/lib", "klibc-"),
    ("usr/share/zoneinfo", "right"),
];

/// The release of the one kernel in the tree.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn kernel_release(tree: &Path) -> Result<String> {
    let dir = tree.join("usr/lib/modules");
    let entries =
        fs::read_dir(&dir).context("the packages bring no kernel (expected linux-image-amd64)")?;
    let mut releases: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    releases.sort();
    match releases.as_slice() {
        [release] => Ok(release.clone()),
        [] => bail!("the packages bring no kernel (expected linux-image-amd64)"),
        several => bail!("the packages bring several kernels: {}", several.join(", ")),
    }
}

/// Moves the kernel out of the tree: in `/boot`, or since 7.2 with its modules.
///
/// # Errors
/// When it is in neither place.
pub(super) fn take_kernel(tree: &Path, release: &str, to: &Path) -> Result<()> {
    let places = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ];
    let found = places
        .iter()
        .map(|place| tree.join(place))
        .find(|path| path.is_file());
    let from = found.with_context(|| format!("no kernel in {}", places.join(" or ")))?;
    fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::remove_file(&from).with_context(|| format!("cannot remove {}", from.display()))
}

/// Removes what no guest opens.
///
/// # Errors
/// When something cannot be removed.
pub(super) fn trim(tree: &Path) -> Result<()> {
    let named = |path: &Path| format!("cannot remove {}", path.display());
    for path in UNUSED.map(|path| tree.join(path)) {
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| named(&path))?;
        }
    }
    for (dir, beginning) in UNUSED_FILES {
        let Ok(entries) = fs::read_dir(tree.join(dir)) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(beginning))
            {
                let removed = if path.is_dir() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.with_context(|| named(&path))?;
            }
        }
    }
    Ok(())
}

/// Writes users, links and mount points, and the cache of libraries.
///
/// # Errors
/// When something cannot be written.
pub(super) fn complete(tree: &Path) -> Result<()> {
    let merged = ["bin", "sbin", "lib", "lib64"]
        .iter()
        .all(|dir| tree.join(dir).is_symlink());
    anyhow::ensure!(
        merged,
        "a package replaced one of the links /bin, /sbin, /lib, /lib64 by a directory"
    );
    for dir in DIRS {
        fs::create_dir_all(tree.join(dir)).with_context(|| format!("cannot make /{dir}"))?;
    }
    for (path, content) in FILES {
        fs::write(tree.join(path), content).with_context(|| format!("cannot write /{path}"))?;
    }
    let sticky = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(tree.join("tmp"), sticky).context("cannot open /tmp to all")?;
    for (path, target) in LINKS {
        link(target, &tree.join(path)).with_context(|| format!("cannot link /{path}"))?;
    }
    // It only saves the loader a search, and is the host's ldconfig.
    let cached = host::command("ldconfig")
        .args(["-X".as_ref(), "-r".as_ref(), tree.as_os_str()])
        .run(DEADLINE);
    if let Err(error) = cached {
        tracing::debug!(%error, "no library cache");
    }
    // ldconfig leaves one that holds inode numbers.
    match fs::remove_dir_all(tree.join("var/cache")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("cannot empty /var/cache")
        }
        _ => fs::create_dir_all(tree.join("var/cache")).context("cannot make /var/cache"),
    }
}

/// Makes a link in the place of whatever is there.
fn link(target: &str, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    symlink(target, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_kernel_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let message = || kernel_release(dir.path()).unwrap_err().to_string();
        assert_eq!(
            message(),
            "the packages bring no kernel (expected linux-image-amd64)"
        );
        fs::create_dir_all(dir.path().join("usr/lib/modules/6.1.0-9-amd64")).unwrap();
        assert_eq!(kernel_release(dir.path()).unwrap(), "6.1.0-9-amd64");
        fs::create_dir_all(dir.path().join("usr/lib/modules/6.1.0-8-amd64")).unwrap();
        assert_eq!(
            message(),
            "the packages bring several kernels: 6.1.0-8-amd64, 6.1.0-9-amd64"
        );
    }

    #[test]
    fn a_tree_is_trimmed_and_completed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        for path in [
            "usr/bin",
            "usr/sbin",
            "var/lib",
            "usr/lib/x86_64-linux-gnu",
            "usr/lib64",
            "usr/share/doc/x",
        ] {
            fs::create_dir_all(tree.join(path)).unwrap();
        }
        for merged in ["bin", "sbin", "lib"] {
            symlink(format!("usr/{merged}"), tree.join(merged)).unwrap();
        }
        fs::write(tree.join("usr/lib/x86_64-linux-gnu/libLLVM-14.so.1"), "").unwrap();
        fs::write(tree.join("usr/lib/x86_64-linux-gnu/libc.so.6"), "").unwrap();
        assert!(complete(tree).is_err(), "/lib64 is missing");
        symlink("usr/lib64", tree.join("lib64")).unwrap();
        trim(tree).unwrap();
        complete(tree).unwrap();
        complete(tree).unwrap();
        assert!(!tree.join("usr/share/doc").exists());
        assert!(
            !tree
                .join("usr/lib/x86_64-linux-gnu/libLLVM-14.so.1")
                .exists()
        );
        assert!(tree.join("usr/lib/x86_64-linux-gnu/libc.so.6").exists());
        assert_eq!(
            fs::read_link(tree.join("bin/sh")).unwrap(),
            Path::new("dash")
        );
        assert!(
            fs::read_to_string(tree.join("etc/passwd"))
                .unwrap()
                .contains("postgres:x:105:110:")
        );
    }
}
