//! Filesystems of others to measure against: libfuse's `passthrough_hp`, and what
//! bindfs needs.
//!
//! No package ships `passthrough_hp` built, and its C++ source is only in the source
//! package (libfuse3-dev has the C examples). It is compiled by the host's g++ against
//! the libfuse of a private root, as [`crate::tools`] makes one for QEMU, and runs
//! through that root's loader: the host's libfuse may be too old for kernel
//! passthrough, which came with 3.17.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cache::{Home, KeyHasher, publish_bytes, publish_dir};
use crate::host::{self, Need, TO_COMPILE_CPP, need};
use crate::image::apt::{self, Archive, Mirrors, Package, Suite};
use crate::lock::FileLock;
use crate::process::Cmd;

/// Programs of the host that measuring beside other filesystems needs.
pub const TO_COMPARE: [Need; 2] = [need("bindfs", "bindfs"), need("git", "git")];
/// What brings PostgreSQL's programs, of whatever version, to a Debian.
pub const POSTGRES: [Need; 1] = [need("pg_ctlcluster", "postgresql")];

/// Where libfuse comes from: 3.17.
const SUITE: &str = "trixie";
const SOURCE_PACKAGE: &str = "fuse3";
const PACKAGES: [&str; 2] = ["libfuse3-dev", "libfuse3-4"];
/// What to raise when the private root or the program is made differently.
const RECIPE_VERSION: &str = "1";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const PROGRAM: &str = "passthrough_hp";
const LOCK_DEADLINE: Duration = Duration::from_secs(1800);
const UNPACK_DEADLINE: Duration = Duration::from_secs(60);
const COMPILE_DEADLINE: Duration = Duration::from_secs(300);
const SPACE_NEEDED: u64 = 256 << 20;

/// A built `passthrough_hp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassthroughHp {
    /// The version of the libfuse package that it is built from and runs with.
    pub version: String,
    dir: PathBuf,
}

/// What is kept beside the private root.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    packages: Vec<Package>,
}

impl PassthroughHp {
    /// A command for it, ready for options, source and mount point.
    pub fn command(&self) -> Cmd {
        let root = self.dir.join("root");
        Cmd::new(root.join(LOADER))
            .arg("--library-path")
            .arg(root.join(LIBRARIES))
            .arg(self.dir.join(PROGRAM))
    }

    /// Finds it in the cache, or makes it.
    ///
    /// # Errors
    /// When it cannot be made: no mirror, no space, no compiler.
    pub fn find(home: &Home, tell: &dyn Fn(host::HostEvent)) -> Result<Self> {
        let key = KeyHasher::new(PROGRAM)
            .field("recipe", RECIPE_VERSION)
            .field("suite", SUITE)
            .finish();
        let dir = home.tools.join(format!("{PROGRAM}-{}", key.short()));
        fs::create_dir_all(&home.tools)
            .with_context(|| format!("cannot make {}", home.tools.display()))?;
        let lock = home.tools.join(format!("{PROGRAM}.lock"));
        let _one_at_a_time = FileLock::exclusive(&lock, LOCK_DEADLINE)?;
        if !dir.join("manifest.json").exists() {
            host::require_space(&home.tools, SPACE_NEEDED)?;
            host::ensure(&host::TO_BUILD_IMAGES, tell)?;
            host::ensure(&TO_COMPILE_CPP, tell)?;
            make(&dir).with_context(|| format!("cannot build {PROGRAM}"))?;
        }
        Self::load(dir)
    }

    fn load(dir: PathBuf) -> Result<Self> {
        let path = dir.join("manifest.json");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .with_context(|| format!("malformed: {}", path.display()))?;
        let version = manifest
            .packages
            .iter()
            .find(|package| package.name == PACKAGES[0])
            .map(|package| package.version.clone())
            .with_context(|| format!("no {} in {}", PACKAGES[0], path.display()))?;
        Ok(Self { version, dir })
    }
}

fn make(dir: &Path) -> Result<()> {
    let mirrors = Mirrors::of_host()?;
    let suites = [Suite {
        name: SUITE.to_owned(),
        archive: Archive::Main,
    }];
    publish_dir(dir, |beside| {
        let root = beside.join("root");
        let request = apt::Request {
            suites: &suites,
            components: &["main".to_owned()],
            packages: &PACKAGES.map(str::to_owned),
            source: Some(SOURCE_PACKAGE),
        };
        let packages = apt::extract(&mirrors, request, &root, &|_progress| {})?;
        compile(&root, beside)?;
        let manifest = Manifest { packages };
        publish_bytes(
            &beside.join("manifest.json"),
            &serde_json::to_vec_pretty(&manifest)?,
        )
    })
}

/// Builds the program of the source package in `root` into `dir`. Its C++ runtime is
/// the host's and linked in; its C library is the private root's at run time, which is
/// newer than the one it is compiled for, as symbol versions allow.
fn compile(root: &Path, dir: &Path) -> Result<()> {
    let archive = upstream_archive(&root.join(apt::SOURCE_DIR))?;
    let source = dir.join("source");
    fs::create_dir(&source).with_context(|| format!("cannot make {}", source.display()))?;
    host::command("tar")
        .args(["--extract", "--strip-components=1", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&source)
        .run(UNPACK_DEADLINE)?;
    Cmd::new("g++")
        .args(["-O2", "-std=c++17", "-w"])
        .arg(format!("-I{}", root.join("usr/include/fuse3").display()))
        .arg(source.join("example").join(format!("{PROGRAM}.cc")))
        .arg(root.join(LIBRARIES).join("libfuse3.so.4"))
        .args(["-static-libstdc++", "-static-libgcc"])
        // The private library asks for symbols of its own C library.
        .args(["-Wl,--allow-shlib-undefined", "-lpthread", "-o"])
        .arg(dir.join(PROGRAM))
        .run(COMPILE_DEADLINE)?;
    let program = PassthroughHp {
        version: String::new(),
        dir: dir.to_owned(),
    };
    let said = program.command().arg("--help").run(UNPACK_DEADLINE)?;
    ensure!(
        said.stdout_text().contains("--nopassthrough"),
        "this {PROGRAM} knows no kernel passthrough: it says {:?}",
        said.stdout_text()
    );
    for dir in [&source, &root.join(apt::SOURCE_DIR)] {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// The `.orig.tar` of a source package.
fn upstream_archive(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let is_archive = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains(".orig.tar.") && !name.ends_with(".asc")
    };
    let found = entries.flatten().map(|entry| entry.path()).find(is_archive);
    found.with_context(|| format!("no upstream archive in {}", dir.display()))
}
