//! QEMU: the host's own when it is new enough, otherwise one in a private root
//! under the cache.
//!
//! The private root holds a distribution's packages, unpacked and never
//! installed. Its programs run through its own dynamic loader with its own
//! libraries, so they need no chroot, no privilege, and nothing of the host's
//! but the kernel; an older host whose own QEMU packages are in the way works
//! all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cache::{Home, KeyHasher, publish_bytes, publish_dir};
use crate::host;
use crate::image::apt::{self, Archive, Mirrors, Package, Progress, Suite};
use crate::lock::FileLock;
use crate::process::Cmd;

const PROGRAM: &str = "qemu-system-x86_64";
/// The oldest QEMU that does what templates and clones need.
const OLDEST: QemuVersion = QemuVersion { major: 9, minor: 0 };
/// Where the private QEMU comes from: QEMU 10.0.
const SUITE: &str = "trixie";
const PACKAGES: [&str; 2] = ["qemu-system-x86", "seabios"];
/// What to raise when the private root is made differently.
const RECIPE_VERSION: &str = "1";
const VERSION_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_DEADLINE: Duration = Duration::from_secs(1800);
const SPACE_NEEDED: u64 = 512 << 20;
/// What QEMU never opens.
const UNUSED: [&str; 16] = [
    "boot",
    "etc",
    "var",
    "usr/sbin",
    "usr/include",
    "usr/libexec",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/icons",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/perl5",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
];

/// A QEMU that runs here and is new enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// As it says itself, for instance `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub version: String,
    /// Where it comes from.
    pub origin: Origin,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

/// Where a QEMU comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The host's package.
    Host,
    /// The private root, made of these packages.
    Private(Vec<Package>),
}

/// A QEMU's version, as far as it decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    major: u32,
    minor: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What is told while QEMU is being looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    /// The host's own is missing or too old (then its version); a private one
    /// is being made.
    FetchingQemu {
        /// The host's, if it has one.
        host: Option<String>,
    },
    /// How far that is.
    Fetching(Progress),
    /// Packages are installed on the host for it.
    Host(host::HostEvent),
    /// The private one is there.
    Fetched {
        /// Its version.
        version: String,
        /// How long it took.
        took: Duration,
    },
}

/// What is kept beside the private root.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: String,
    packages: Vec<Package>,
    loosened_checks: Vec<String>,
}

impl Qemu {
    /// A command for it, ready for arguments.
    pub fn command(&self) -> Cmd {
        let start = Cmd::new(&self.program).args(&self.args);
        self.env
            .iter()
            .fold(start, |cmd, (key, value)| cmd.env(key, value))
    }

    fn host(program: PathBuf, version: String) -> Qemu {
        Qemu {
            version,
            origin: Origin::Host,
            program,
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The one in the private root. Every path is absolute and below it.
    fn private(root: &Path, version: String, packages: Vec<Package>) -> Qemu {
        let below = |path: &str| root.join(path).to_string_lossy().into_owned();
        let args = [
            "--argv0".to_owned(),
            PROGRAM.to_owned(),
            "--library-path".to_owned(),
            below("usr/lib/x86_64-linux-gnu"),
            below("usr/bin/qemu-system-x86_64"),
            "-L".to_owned(),
            below("usr/share/qemu"),
            "-L".to_owned(),
            below("usr/share/seabios"),
        ];
        Qemu {
            version,
            origin: Origin::Private(packages),
            program: root.join("usr/lib64/ld-linux-x86-64.so.2"),
            args: args.into(),
            env: vec![(
                "QEMU_MODULE_DIR".to_owned(),
                below("usr/lib/x86_64-linux-gnu/qemu"),
            )],
        }
    }

    /// Asks the program for its version.
    fn ask_version(&self) -> Result<String> {
        let said = self
            .command()
            .arg("--version")
            .run(VERSION_DEADLINE)?
            .stdout_text();
        parse_version_line(&said).with_context(|| format!("{PROGRAM} --version says {said:?}"))
    }
}

/// The host's QEMU and whether it is new enough; `None` when there is none.
///
/// # Errors
/// When there is one that does not even tell its version.
pub fn host_qemu() -> Result<Option<(Qemu, bool)>> {
    let Some(program) = host::program(PROGRAM) else {
        return Ok(None);
    };
    let mut qemu = Qemu::host(program, String::new());
    qemu.version = qemu.ask_version()?;
    let new_enough = parse_version(&qemu.version).is_some_and(|version| version >= OLDEST);
    Ok(Some((qemu, new_enough)))
}

/// Finds a QEMU that is new enough, making the private one if it must.
///
/// # Errors
/// When the private one cannot be made: no mirror, no space, no mmdebstrap.
pub fn qemu(home: &Home, tell: &dyn Fn(ToolEvent)) -> Result<Qemu> {
    let on_host = host_qemu().unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "the host's QEMU does not run");
        None
    });
    match on_host {
        Some((qemu, true)) => Ok(qemu),
        older => private_qemu(home, older.map(|(qemu, _)| qemu.version), tell),
    }
}

/// The private QEMU, made if it is not there yet; `host` is the version of the
/// host's that will not do.
///
/// # Errors
/// As [`qemu`].
pub fn private_qemu(home: &Home, host: Option<String>, tell: &dyn Fn(ToolEvent)) -> Result<Qemu> {
    let key = KeyHasher::new("qemu")
        .field("recipe", RECIPE_VERSION)
        .field("suite", SUITE)
        .finish();
    let dir = home.tools.join(format!("qemu-{}", key.short()));
    if let Some(qemu) = load(&dir)? {
        return Ok(qemu);
    }
    let _one_at_a_time = FileLock::exclusive(&home.tools.join("qemu.lock"), LOCK_DEADLINE)?;
    if let Some(qemu) = load(&dir)? {
        return Ok(qemu);
    }
    tell(ToolEvent::FetchingQemu { host });
    let started = Instant::now();
    host::require_space(&home.tools, SPACE_NEEDED)?;
    host::ensure(&host::TO_BUILD_IMAGES, &|event| {
        tell(ToolEvent::Host(event))
    })?;
    make(&dir, tell)
        .map_err(|error| host::name_full_disk(error, &home.tools, "unpacking QEMU"))
        .context("cannot make a private QEMU")?;
    let qemu = load(&dir)?.with_context(|| format!("{} is incomplete", dir.display()))?;
    tell(ToolEvent::Fetched {
        version: qemu.version.clone(),
        took: started.elapsed(),
    });
    Ok(qemu)
}

fn load(dir: &Path) -> Result<Option<Qemu>> {
    let path = dir.join("manifest.json");
    if !path.exists() {
        return Ok(None);
    }
    let manifest = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest = serde_json::from_slice(&manifest)
        .with_context(|| format!("malformed: {}", path.display()))?;
    Ok(Some(Qemu::private(
        &dir.join("root"),
        manifest.version,
        manifest.packages,
    )))
}

fn make(dir: &Path, tell: &dyn Fn(ToolEvent)) -> Result<()> {
    let mirrors = Mirrors::of_host()?;
    let suites = [Suite {
        name: SUITE.to_owned(),
        archive: Archive::Main,
    }];
    let packages = PACKAGES.map(str::to_owned);
    publish_dir(dir, |beside| {
        let root = beside.join("root");
        let request = apt::Request {
            suites: &suites,
            components: &["main".to_owned()],
            packages: &packages,
            source: None,
        };
        let packages = apt::extract(&mirrors, request, &root, &|progress| {
            tell(ToolEvent::Fetching(progress))
        })?;
        trim(&root)?;
        let version = Qemu::private(&root, String::new(), Vec::new()).ask_version()?;
        ensure!(
            parse_version(&version) >= Some(OLDEST),
            "{SUITE} has QEMU {version}, {OLDEST} is needed"
        );
        let manifest = Manifest {
            version,
            packages,
            loosened_checks: mirrors.loosened_checks(),
        };
        publish_bytes(
            &beside.join("manifest.json"),
            &serde_json::to_vec_pretty(&manifest)?,
        )
    })
}

fn trim(root: &Path) -> Result<()> {
    for path in UNUSED.map(|path| root.join(path)) {
        if path.is_dir() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    for entry in fs::read_dir(root.join("usr/bin"))? {
        let path = entry?.path();
        if path.file_name().is_none_or(|name| name != PROGRAM) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// `QEMU emulator version 10.0.2 (Debian …)` → `10.0.2 (Debian …)`.
fn parse_version_line(said: &str) -> Option<String> {
    let version = said
        .lines()
        .next()?
        .strip_prefix("QEMU emulator version ")?
        .trim();
    parse_version(version).map(|_| version.to_owned())
}

fn parse_version(version: &str) -> Option<QemuVersion> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    Some(QemuVersion {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let line = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025\n";
        assert_eq!(
            parse_version_line(line).unwrap(),
            "10.0.2 (Debian 1:10.0.2+ds-2)"
        );
        assert_eq!(parse_version_line("something else"), None);
        assert!(parse_version("10.0.2").unwrap() > OLDEST);
        assert!(parse_version("9.0.0").unwrap() >= OLDEST);
        assert!(parse_version("8.2.2 (Debian)").unwrap() < OLDEST);
    }

    #[test]
    fn the_private_one_runs_through_its_own_loader() {
        let line = Qemu::private(Path::new("/r"), "10.0".into(), Vec::new())
            .command()
            .arg("-S")
            .line();
        assert_eq!(
            line,
            "QEMU_MODULE_DIR=/r/usr/lib/x86_64-linux-gnu/qemu /r/usr/lib64/ld-linux-x86-64.so.2 --argv0 \
             qemu-system-x86_64 --library-path /r/usr/lib/x86_64-linux-gnu /r/usr/bin/qemu-system-x86_64 -L \
             /r/usr/share/qemu -L /r/usr/share/seabios -S"
        );
    }
}
