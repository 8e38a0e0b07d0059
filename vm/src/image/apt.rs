//! Debian packages out of the archive into a directory, by mmdebstrap.
//!
//! `--variant=extract` unpacks and runs no maintainer script, so nothing of the
//! archive's is executed on the host, and no root is needed (mode
//! `chrootless`). What went in is told by the `.deb` files themselves: name,
//! version and the SHA-256 of their bytes.
//!
//! Mirrors come from the host's own apt configuration; `$PLUGPULL_MIRROR`
//! replaces them, and must be set where the host is not Debian.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::ContentHash;
use crate::host;
use crate::process::Cmd;

/// The base URI of a Debian archive, for hosts whose apt has none.
const MIRROR_VARIABLE: &str = "PLUGPULL_MIRROR";
/// A slow line gets 20 minutes for 300 MB.
const DEADLINE: Duration = Duration::from_secs(1200);
const APT_CONFIG_DEADLINE: Duration = Duration::from_secs(60);
/// The host's apt settings that reaching its mirrors may depend on.
const KEPT_SETTINGS: [&str; 4] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
];

/// Which of Debian's archives a suite lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Archive {
    /// Releases, updates, backports.
    Main,
    /// Security updates.
    Security,
}

/// Where the archives are and how the host's apt reaches them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    main: String,
    security: String,
    settings: Vec<String>,
}

/// A suite to take packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// Its name, such as `trixie-backports`.
    pub name: String,
    /// The archive that has it.
    pub archive: Archive,
}

/// One package as it went in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, with the epoch.
    pub version: String,
    /// The hash of the `.deb` file.
    pub sha256: ContentHash,
}

/// A package that apt was told to find and did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// No suite has a package of this name.
    Package(String),
    /// No suite has this version of it (any more).
    Version {
        /// The package.
        package: String,
        /// The version asked for.
        version: String,
    },
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Absent::Package(package) => write!(f, "no package named {package}"),
            Absent::Version { package, version } => {
                write!(f, "no version {version} of the package {package}")
            }
        }
    }
}

/// The archive cannot give what was asked for.
#[derive(Debug, thiserror::Error)]
#[error(
    "the package archive has {} (suites: {suites})",
    absent.iter().map(Absent::to_string).collect::<Vec<_>>().join(", and ")
)]
pub struct AbsentError {
    /// Everything that is missing.
    pub absent: Vec<Absent>,
    suites: String,
}

/// How far an extraction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// apt reads indexes and chooses versions.
    Resolving,
    /// Bytes that are here, of all that come.
    Downloading {
        /// Bytes.
        done: u64,
        /// Bytes.
        total: u64,
    },
    /// The packages are unpacked.
    Extracting,
}

/// What to unpack.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Where from.
    pub suites: &'a [Suite],
    /// Sections of each suite, such as `main`.
    pub components: &'a [String],
    /// Packages as apt-get(8) takes them: `name`, `name=version`, `name/suite`.
    pub packages: &'a [String],
    /// A source package whose files, as they come from the archive and with their
    /// signatures checked, are put into [`SOURCE_DIR`].
    pub source: Option<&'a str>,
}

/// Where in the tree the files of [`Request::source`] lie.
pub const SOURCE_DIR: &str = "source";

impl Mirrors {
    /// Those of `$PLUGPULL_MIRROR`, or of the host's apt.
    ///
    /// # Errors
    /// When neither names a Debian archive.
    pub fn of_host() -> Result<Mirrors> {
        let settings = host_settings();
        if let Some(uri) = std::env::var(MIRROR_VARIABLE)
            .ok()
            .filter(|uri| !uri.is_empty())
        {
            let main = uri.trim_end_matches('/').to_owned();
            return Ok(Mirrors {
                security: format!("{main}-security"),
                main,
                settings,
            });
        }
        // Unlike the files under /etc/apt this has one format.
        let listed = Cmd::new("apt-get")
            .args([
                "indextargets",
                "--format",
                "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)",
                "Created-By: Packages",
            ])
            .run(APT_CONFIG_DEADLINE);
        let listed = match listed {
            Ok(output) => output.stdout_text(),
            Err(error) if error.is_not_found() => String::new(),
            Err(error) => return Err(error).context("cannot ask apt for its mirrors"),
        };
        let Some((main, security)) = parse_targets(&listed) else {
            bail!(
                "no Debian archive in the host's apt configuration: set {MIRROR_VARIABLE} to the base URI of a Debian \
                 mirror (the security archive is expected at the same URI with \"-security\" appended)"
            );
        };
        Ok(Mirrors {
            main,
            security,
            settings,
        })
    }

    /// The host's settings that loosen apt's checks of an archive's age; they
    /// hold for image builds too, and belong into what is recorded of them.
    pub fn loosened_checks(&self) -> Vec<String> {
        let loose =
            |setting: &&String| setting.contains("::Check-") && setting.contains("\"false\"");
        self.settings.iter().filter(loose).cloned().collect()
    }

    fn line(&self, suite: &Suite, components: &[String]) -> String {
        let uri = match suite.archive {
            Archive::Main => &self.main,
            Archive::Security => &self.security,
        };
        format!(
            "deb [signed-by={}] {uri} {} {}",
            host::KEYRING,
            suite.name,
            components.join(" ")
        )
    }
}

/// The Debian archive and its security archive among apt's index targets. A
/// target's origin is only known once its Release file is there.
fn parse_targets(listed: &str) -> Option<(String, String)> {
    let targets: Vec<[&str; 4]> = listed
        .lines()
        .filter_map(|line| line.split('|').collect::<Vec<_>>().try_into().ok())
        .filter(|[_, _, component, _]: &[&str; 4]| *component == "main")
        .collect();
    let is_security =
        |release: &str| release.ends_with("-security") || release.contains("/updates");
    let pick = |security: bool| {
        let fitting = || {
            targets
                .iter()
                .filter(|[_, release, ..]| is_security(release) == security)
        };
        let known = fitting().find(|[.., origin]| *origin == "Debian");
        let unknown = || {
            fitting()
                .find(|[uri, _, _, origin]| origin.starts_with("$(") && uri.contains("/debian"))
        };
        known
            .or_else(unknown)
            .map(|[uri, ..]| uri.trim_end_matches('/').to_owned())
    };
    let main = pick(false)?;
    let security = pick(true).unwrap_or_else(|| format!("{main}-security"));
    Some((main, security))
}

/// The host's settings in the syntax of apt.conf(5). None where it has no apt.
fn host_settings() -> Vec<String> {
    let dumped = Cmd::new("apt-config").arg("dump").run(APT_CONFIG_DEADLINE);
    let dumped = dumped
        .map(|output| output.stdout_text())
        .unwrap_or_default();
    dumped
        .lines()
        .filter(|line| KEPT_SETTINGS.iter().any(|kept| line.starts_with(kept)))
        .map(str::to_owned)
        .collect()
}

/// Unpacks packages and all they depend on into the empty directory `dir`, with
/// `/bin`, `/sbin` and `/lib*` being links into `/usr`, and returns what went
/// in, sorted by name.
///
/// # Errors
/// [`AbsentError`] when the archive has not got them; mmdebstrap's own message
/// otherwise.
pub fn extract(
    mirrors: &Mirrors,
    request: Request<'_>,
    dir: &Path,
    tell: &dyn Fn(Progress),
) -> Result<Vec<Package>> {
    let suite_names = || {
        request
            .suites
            .iter()
            .map(|suite| suite.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    tell(Progress::Resolving);
    let mut follow = Follow::default();
    let mut on_line = |line: &str| follow.line(line).into_iter().for_each(tell);
    match mmdebstrap(mirrors, request, dir).run_with(DEADLINE, &mut on_line) {
        Ok(_) => take_packages(dir),
        Err(error) => match parse_absent(&error.stderr_text()) {
            absent if absent.is_empty() => Err(error).context("cannot get packages"),
            absent => {
                // All that apt said besides would bury the names.
                tracing::debug!(%error, "packages are absent");
                Err(AbsentError {
                    absent,
                    suites: suite_names(),
                }
                .into())
            }
        },
    }
}

fn mmdebstrap(mirrors: &Mirrors, request: Request<'_>, dir: &Path) -> Cmd {
    let root = rustix::process::geteuid().is_root();
    let settings = mirrors
        .settings
        .iter()
        .map(|setting| format!("--aptopt={setting}"));
    // Older suites have real directories in their packages; with the links in
    // place first, tar follows them.
    let merge =
        r#"for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done"#;
    let program = if root {
        // It mounts below the directory and takes that back at its end; killed, it
        // cannot. In a mount namespace of its own everything goes with it.
        host::command("unshare").args(["--mount", "--", "mmdebstrap"])
    } else {
        host::command("mmdebstrap")
    };
    let cmd = program
        .args([
            "--variant=extract",
            "--format=directory",
            "--architectures=amd64",
            "--verbose",
        ])
        .arg(if root {
            "--mode=root"
        } else {
            "--mode=chrootless"
        })
        .arg("--skip=check/signed-by,check/empty,essential/unlink,cleanup/apt/cache")
        .args(settings)
        .arg(format!("--setup-hook={merge}"))
        .args(request.source.map(source_hook))
        .arg(format!("--include={}", request.packages.join(",")))
        // No suite: the lines say it all.
        .arg("")
        .arg(dir)
        .args(
            request
                .suites
                .iter()
                .map(|suite| mirrors.line(suite, request.components)),
        )
        .env("LC_ALL", "C.UTF-8")
        .own_group();
    if request.source.is_none() {
        return cmd;
    }
    let lines = request.suites.iter().map(|suite| {
        let line = mirrors.line(suite, request.components);
        line.replacen("deb ", "deb-src ", 1)
    });
    cmd.args(lines)
}

/// Has the apt of the tree, which knows only the request's suites, fetch a source
/// package.
fn source_hook(package: &str) -> String {
    format!(
        r#"--extract-hook=mkdir "$1/{SOURCE_DIR}" && cd "$1/{SOURCE_DIR}" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get source --download-only {package}"#
    )
}

/// Hashes the `.deb` files that apt left in the tree, and removes them.
fn take_packages(dir: &Path) -> Result<Vec<Package>> {
    let archives = dir.join("var/cache/apt/archives");
    let mut packages = Vec::new();
    for entry in fs::read_dir(&archives).with_context(|| format!("no {}", archives.display()))? {
        let path = entry?.path();
        let Some(stem) = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".deb"))
        else {
            continue;
        };
        let (name, version) =
            parse_deb_name(stem).with_context(|| format!("unexpected name: {stem}.deb"))?;
        packages.push(Package {
            name,
            version,
            sha256: ContentHash::of_file(&path)?,
        });
    }
    fs::remove_dir_all(&archives)
        .with_context(|| format!("cannot remove {}", archives.display()))?;
    packages.sort();
    Ok(packages)
}

/// Name and version out of `name_version_arch`, where apt has escaped an
/// epoch's colon.
fn parse_deb_name(stem: &str) -> Option<(String, String)> {
    let mut parts = stem.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    let _architecture = parts.next()?;
    (parts.next().is_none() && !name.is_empty())
        .then(|| (name.to_owned(), version.replace("%3a", ":")))
}

/// Everything that apt says it cannot find.
fn parse_absent(stderr: &str) -> Vec<Absent> {
    let quoted = |text: &str| text.split('\'').nth(1).unwrap_or_default().to_owned();
    let mut absent: Vec<Absent> = Vec::new();
    for line in stderr.lines().filter_map(|line| line.strip_prefix("E: ")) {
        let found = if let Some(name) = line.strip_prefix("Unable to locate package ") {
            Absent::Package(name.trim().to_owned())
        } else if line.starts_with("Package '") && line.ends_with("has no installation candidate") {
            Absent::Package(quoted(line))
        } else if line.starts_with("Version '") || line.starts_with("Release '") {
            let package = line.split('\'').nth(3).unwrap_or_default().to_owned();
            Absent::Version {
                package,
                version: quoted(line),
            }
        } else {
            continue;
        };
        if !absent.contains(&found) {
            absent.push(found);
        }
    }
    absent
}

/// Follows what apt and mmdebstrap say.
#[derive(Debug, Default)]
struct Follow {
    done: u64,
    /// Bytes to come; 0 until apt has said so, and indexes are fetched before.
    total: u64,
}

impl Follow {
    fn line(&mut self, line: &str) -> Option<Progress> {
        if line.starts_with("I: extracting archives") {
            return Some(Progress::Extracting);
        }
        if let Some(rest) = line.strip_prefix("Need to get ") {
            // "188 MB of archives." or, with some here, "12 MB/188 MB of archives."
            let size = rest.split(" of archives").next()?.split('/').next()?;
            self.total = parse_size(size)?;
            return Some(Progress::Downloading {
                done: 0,
                total: self.total,
            });
        }
        if self.total > 0 && line.starts_with("Get:") {
            let (_, size) = line.trim_end().strip_suffix(']')?.rsplit_once('[')?;
            self.done = (self.done + parse_size(size)?).min(self.total);
            return Some(Progress::Downloading {
                done: self.done,
                total: self.total,
            });
        }
        None
    }
}

/// apt's sizes: "37.6 kB", "8,790 kB", "306 MB"; powers of ten.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = text.trim().split_once(' ')?;
    let number: f64 = number.replace(',', "").parse().ok()?;
    let factor = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size for a progress bar"
    )]
    Some((number * factor) as u64)
}

#[cfg(test)]
mod tests;
