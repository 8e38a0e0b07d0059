//! What must be on the host, and what the host is.
//!
//! Missing packages are installed with apt-get where we are root on Debian or
//! one of its children, and said; elsewhere the error holds the one command to
//! type. Nothing else on the host is changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::statvfs;

use crate::process::{Cmd, RunError};

/// apt-get waits this long for another apt-get, and we wait longer for it.
const APT_LOCK_SECONDS: u32 = 120;
const APT_DEADLINE: Duration = Duration::from_secs(900);
/// Where administrators' programs are, which are not on every user's PATH.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The host lacks something; an infrastructure error (exit code 69).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HostError {
    /// Programs or files that a package would bring.
    #[error("missing on this host: {}. Install with:\n    {command}", what.join(", "))]
    Missing {
        /// The programs and files.
        what: Vec<String>,
        /// The one command that brings all of them.
        command: String,
    },
    /// Too little room to begin with.
    #[error("too little disk space in {}: {} free, {} needed", dir.display(), mebibytes(*free), mebibytes(*needed))]
    NoSpace {
        /// A directory on the file system that is full.
        dir: PathBuf,
        /// Bytes.
        free: u64,
        /// Bytes.
        needed: u64,
    },
    /// The room ran out on the way.
    #[error("the disk ran full in {} while {doing} ({} free after cleaning up)", dir.display(), mebibytes(*free))]
    Full {
        /// A directory on the file system that is full.
        dir: PathBuf,
        /// Bytes.
        free: u64,
        /// What was being done.
        doing: String,
    },
}

/// Something that must be there, and the package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// A program's name, or the absolute path of a file.
    pub what: &'static str,
    package: Package,
}

/// A package's name per family of distributions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Package {
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
    suse: &'static str,
}

pub(crate) const fn need(what: &'static str, debian: &'static str) -> Need {
    Need {
        what,
        package: Package {
            debian,
            fedora: debian,
            arch: debian,
            suse: debian,
        },
    }
}

/// The archive's public keys, which apt checks indexes with.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What building an image or our own QEMU needs.
pub const TO_BUILD_IMAGES: [Need; 4] = [
    need("mmdebstrap", "mmdebstrap"),
    need("mke2fs", "e2fsprogs"),
    Need {
        what: "xz",
        package: Package {
            debian: "xz-utils",
            fedora: "xz",
            arch: "xz",
            suse: "xz",
        },
    },
    Need {
        what: KEYRING,
        package: Package {
            debian: "debian-archive-keyring",
            fedora: "debian-keyring",
            arch: "debian-archive-keyring",
            suse: "debian-archive-keyring",
        },
    },
];

/// What the tests on the host need besides: a real NBD client, programs to run on the
/// filesystem, filesystems to lay below it, and what mounts for ordinary users.
pub const TO_TEST: [Need; 6] = [
    Need {
        what: "qemu-io",
        package: Package {
            debian: "qemu-utils",
            fedora: "qemu-img",
            arch: "qemu-img",
            suse: "qemu-tools",
        },
    },
    need("git", "git"),
    need("fusermount3", "fuse3"),
    need("mkfs.ext4", "e2fsprogs"),
    need("mkfs.xfs", "xfsprogs"),
    Need {
        what: "mkfs.btrfs",
        package: Package {
            debian: "btrfs-progs",
            fedora: "btrfs-progs",
            arch: "btrfs-progs",
            suse: "btrfsprogs",
        },
    },
];

/// What looking at a report takes, where no other browser is there.
pub const TO_LOOK: [Need; 1] = [need("chromium-headless-shell", "chromium-headless-shell")];

/// A C++ compiler.
pub(crate) const TO_COMPILE_CPP: [Need; 1] = [Need {
    what: "g++",
    package: Package {
        debian: "g++",
        fedora: "gcc-c++",
        arch: "gcc",
        suse: "gcc-c++",
    },
}];

/// What is told while packages are installed on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// `apt-get update` runs, because the package lists are missing or old.
    UpdatingLists,
    /// `apt-get install` runs with these packages.
    Installing(Vec<String>),
}

/// A distribution, as far as installing packages on it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Debian,
    Fedora,
    Arch,
    Suse,
    Other,
}

/// Sees to it that the host has all of `needs`.
///
/// # Errors
/// [`HostError::Missing`] where we may not install them; apt-get's own error
/// when it cannot.
pub fn ensure(needs: &[Need], tell: &dyn Fn(HostEvent)) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let family = Family::of(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let root = rustix::process::geteuid().is_root();
    if family != Family::Debian || !root {
        let what = missing.iter().map(|need| need.what.to_owned()).collect();
        return Err(HostError::Missing {
            what,
            command: family.install_command(&missing, root),
        }
        .into());
    }
    let packages = family.packages(&missing);
    tell(HostEvent::Installing(packages.clone()));
    let listed = has_package_lists(Path::new("/var/lib/apt/lists"));
    if !listed {
        tell(HostEvent::UpdatingLists);
        apt_get(&["update".to_owned()])?;
    }
    let mut install = vec!["install".to_owned(), "--no-install-recommends".to_owned()];
    install.extend(packages);
    match apt_get(&install) {
        // Lists that are older than the archive name versions that are gone.
        Err(error) if listed => {
            tracing::info!(%error, "apt-get install failed, updating the package lists");
            tell(HostEvent::UpdatingLists);
            apt_get(&["update".to_owned()])?;
            apt_get(&install)?;
        }
        result => result?,
    }
    let still: Vec<String> = self::missing(needs)
        .iter()
        .map(|need| need.what.to_owned())
        .collect();
    anyhow::ensure!(
        still.is_empty(),
        "apt-get succeeded and yet there is no {}",
        still.join(", ")
    );
    Ok(())
}

/// Those of `needs` that the host has not.
pub fn missing(needs: &[Need]) -> Vec<Need> {
    let there = |need: &Need| match need.what.starts_with('/') {
        true => Path::new(need.what).exists(),
        false => program(need.what).is_some(),
    };
    needs.iter().copied().filter(|need| !there(need)).collect()
}

/// Finds a program on the PATH or where administrators' programs are.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(name))
        .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}

/// A command for a program that [`program`] finds; under its bare name, so that
/// starting it tells the name, where it does not.
pub fn command(name: &str) -> Cmd {
    program(name).map_or_else(|| Cmd::new(name), Cmd::new)
}

fn apt_get(args: &[String]) -> Result<(), RunError> {
    command("apt-get")
        .args([
            "-q",
            "-y",
            "-o",
            &format!("DPkg::Lock::Timeout={APT_LOCK_SECONDS}"),
        ])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run(APT_DEADLINE)
        .map(drop)
}

fn has_package_lists(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

impl Family {
    fn of(os_release: &str) -> Family {
        let values = os_release.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            matches!(key, "ID" | "ID_LIKE").then(|| value.trim_matches('"'))
        });
        values
            .flat_map(str::split_whitespace)
            .find_map(|id| match id {
                "debian" | "ubuntu" => Some(Family::Debian),
                "fedora" | "rhel" => Some(Family::Fedora),
                "arch" => Some(Family::Arch),
                "suse" | "opensuse" => Some(Family::Suse),
                _ => None,
            })
            .unwrap_or(Family::Other)
    }

    fn packages(self, needs: &[Need]) -> Vec<String> {
        let mut names: Vec<String> = needs
            .iter()
            .map(|need| match self {
                Family::Debian | Family::Other => need.package.debian,
                Family::Fedora => need.package.fedora,
                Family::Arch => need.package.arch,
                Family::Suse => need.package.suse,
            })
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn install_command(self, needs: &[Need], root: bool) -> String {
        let packages = self.packages(needs).join(" ");
        let sudo = if root { "" } else { "sudo " };
        match self {
            Family::Debian => {
                format!(
                    "{sudo}apt-get update && {sudo}apt-get install --no-install-recommends {packages}"
                )
            }
            Family::Fedora => format!("{sudo}dnf install {packages}"),
            Family::Arch => format!("{sudo}pacman -S {packages}"),
            Family::Suse => format!("{sudo}zypper install {packages}"),
            Family::Other => format!("(your package manager) install {packages}  # Debian's names"),
        }
    }
}

/// Bytes that an unprivileged user may still write on the file system of `dir`,
/// or of the closest directory above that exists.
///
/// # Errors
/// When the file system cannot be asked.
pub fn free_space(dir: &Path) -> Result<u64> {
    let existing = dir
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    let stat = statvfs(existing)
        .with_context(|| format!("cannot ask for free space in {}", existing.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Fails early where `dir` has no room for `needed` bytes.
///
/// # Errors
/// [`HostError::NoSpace`].
pub fn require_space(dir: &Path, needed: u64) -> Result<()> {
    let free = free_space(dir)?;
    if free < needed {
        return Err(HostError::NoSpace {
            dir: dir.to_owned(),
            free,
            needed,
        }
        .into());
    }
    Ok(())
}

/// Turns an error that was a full disk underneath into [`HostError::Full`],
/// and leaves any other alone. Programs report it as text only.
pub fn name_full_disk(error: anyhow::Error, dir: &Path, doing: &str) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let said = cause
            .downcast_ref::<RunError>()
            .map(RunError::stderr_text)
            .unwrap_or_default();
        let said = said.contains("No space left on device") || said.contains("enough free space");
        said || matches!(
            io,
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    });
    if !full {
        return error;
    }
    let free = free_space(dir).unwrap_or_default();
    error.context(HostError::Full {
        dir: dir.to_owned(),
        free,
        doing: doing.to_owned(),
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// What this host is, for `doctor`.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Processors this process may use.
    pub cores: usize,
    /// Memory that could be used without swapping, in bytes.
    pub memory_available: u64,
    /// Free bytes where state is kept.
    pub disk_free: u64,
    /// `/dev/kvm` can be opened. Whether it *works* takes a boot to know.
    pub kvm: Device,
    /// `/dev/fuse` can be opened.
    pub fuse: Device,
    /// The running kernel's release.
    pub kernel: String,
}

/// A device node, seen by opening it for reading and writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// It opened.
    Opens,
    /// There is no such node.
    Absent,
    /// It is there and does not open, for this reason.
    Refuses(String),
}

/// Asks the host what it is; `state` is where state will be kept.
///
/// # Errors
/// When the disk or `/proc` cannot be read.
pub fn facts(state: &Path) -> Result<Facts> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    Ok(Facts {
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_available: memory_available(&meminfo).context("no MemAvailable in /proc/meminfo")?,
        disk_free: free_space(state)?,
        kvm: device(Path::new("/dev/kvm")),
        fuse: device(Path::new("/dev/fuse")),
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
    })
}

fn memory_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn device(path: &Path) -> Device {
    match fs::File::options().read(true).write(true).open(path) {
        Ok(_) => Device::Opens,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Device::Absent,
        Err(error) => Device::Refuses(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
