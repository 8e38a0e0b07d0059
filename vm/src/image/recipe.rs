//! A guest image as its author writes it: `vm-images/NAME.toml`.
//!
//! The file is read into raw tables and then turned into a [`Recipe`], in which
//! every name is well formed, every package is taken from somewhere, and sizes
//! are numbers.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use toml::Spanned;

use super::apt::{Archive, Suite};
use super::problem::{Problem, Source, nearest};
use crate::cache::{ContentHash, KeyHasher};

/// The name of an image: lower-case letters, digits and inner hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct ImageName(String);

impl ImageName {
    /// Checks the spelling.
    ///
    /// # Errors
    /// Says what a name looks like.
    pub fn new(name: &str) -> Result<ImageName> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let outer = |name: &str| !name.is_empty() && !name.starts_with('-') && !name.ends_with('-');
        let good = outer(name) && name.chars().all(inner);
        anyhow::ensure!(
            good,
            "{name:?} is no image name: lower-case letters, digits, hyphens inside"
        );
        Ok(ImageName(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// No recipe of that name (exit code 2).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "no image named {name:?} in {}; there {}{}",
    dir.display(),
    if known.is_empty() { "are none".to_owned() } else { format!("are {}", known.join(", ")) },
    near.as_ref().map(|near| format!("; did you mean {near}?")).unwrap_or_default()
)]
pub struct UnknownImage {
    name: String,
    dir: PathBuf,
    known: Vec<String>,
    near: Option<String>,
}

/// Between the name of an image and those of the packages that were added.
pub(super) const WITH: &str = "-with-";

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The file's name without `.toml`.
    pub name: ImageName,
    /// The file it was read from.
    pub file: PathBuf,
    /// One line for people.
    pub about: String,
    /// Where packages come from.
    pub suites: Vec<Suite>,
    /// Sections of each suite.
    pub components: Vec<String>,
    /// What goes in besides what it depends on, as apt takes it: `name`, or
    /// `name/suite` where the recipe says which suite.
    pub packages: Vec<String>,
    /// The directory of PostgreSQL's server programs in the guest.
    pub postgres_bin: String,
    /// Kernel modules.
    pub modules: Modules,
    /// Room left free on the root disk, in bytes.
    pub headroom: u64,
    /// Packages besides those of the file, which its lock does not pin: what
    /// the programs of one run need.
    pub extra: Vec<String>,
}

/// Kernel modules by when they are loaded, in this order, each after what it
/// depends on. Names that the kernel has built in need no loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modules {
    /// From the initramfs: what reaching the root disk takes.
    pub early: Vec<String>,
    /// From the root disk.
    pub late: Vec<String>,
    /// Not loaded, but kept on the root disk with what they depend on.
    pub kept: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    about: Spanned<String>,
    components: Spanned<Vec<Spanned<String>>>,
    packages: Spanned<Vec<Spanned<String>>>,
    source: Vec<RawSource>,
    postgres: RawPostgres,
    modules: RawModules,
    disk: RawDisk,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    suite: Spanned<String>,
    #[serde(default)]
    archive: RawArchive,
    /// Taken from this suite, whatever others have.
    #[serde(default)]
    packages: Vec<Spanned<String>>,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "kebab-case")]
enum RawArchive {
    #[default]
    Main,
    Security,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPostgres {
    bin: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModules {
    early: Vec<Spanned<String>>,
    late: Vec<Spanned<String>>,
    #[serde(default)]
    kept: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    headroom: Spanned<String>,
}

impl Recipe {
    /// Reads `DIR/NAME.toml`.
    ///
    /// # Errors
    /// [`UnknownImage`] when there is none, with near names; [`Problem`] when
    /// something is wrong in it.
    pub fn load(dir: &Path, name: &str) -> Result<Recipe> {
        let known = names(dir)?;
        let Some(name) = known.iter().find(|known| known.as_str() == name) else {
            let known: Vec<String> = known.iter().map(ToString::to_string).collect();
            let near = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
            return Err(UnknownImage {
                name: name.to_owned(),
                dir: dir.to_owned(),
                known,
                near,
            }
            .into());
        };
        let file = dir.join(format!("{name}.toml"));
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Recipe::parse(name.clone(), &file, &text)?)
    }

    /// The same image with more packages in it, under a name of its own; the
    /// lock of the file goes on pinning all the others. Those that the recipe
    /// has already add nothing.
    ///
    /// # Errors
    /// When something is no name of a package.
    pub fn with_packages(mut self, packages: &[String]) -> Result<Recipe> {
        for package in packages {
            anyhow::ensure!(
                is_package_name(package),
                "expected a package's name, found {package:?}"
            );
        }
        let wanted: BTreeSet<String> = packages.iter().cloned().collect();
        let has = |package: &String| {
            let mut names = self.packages.iter().map(|own| own.split('/').next());
            names.any(|own| own == Some(package))
        };
        self.extra = wanted.into_iter().filter(|package| !has(package)).collect();
        if !self.extra.is_empty() {
            // A dot or a plus is no part of an image's name; the key tells images apart.
            let with = self.extra.join("-").replace(['.', '+'], "-");
            let name = format!("{}{WITH}{}", self.name, with.trim_matches('-'));
            self.name = ImageName::new(&name)?;
        }
        Ok(self)
    }

    /// The lock beside it.
    pub fn lock_file(&self) -> PathBuf {
        self.file.with_extension("lock")
    }

    /// Changes when what packages go in could change.
    pub fn packages_key(&self) -> ContentHash {
        let mut key = KeyHasher::new("packages");
        for suite in &self.suites {
            key = key.field("suite", format!("{:?} {}", suite.archive, suite.name));
        }
        for component in &self.components {
            key = key.field("component", component);
        }
        for package in &self.packages {
            key = key.field("package", package);
        }
        key.finish()
    }

    /// Changes when the image could change.
    pub fn key(&self) -> ContentHash {
        let mut key = KeyHasher::new("recipe").field("packages", self.packages_key().as_str());
        key = key.field("headroom", self.headroom.to_le_bytes());
        for package in &self.extra {
            key = key.field("extra", package);
        }
        let Modules { early, late, kept } = &self.modules;
        for (when, names) in [("early", early), ("late", late), ("kept", kept)] {
            key = key.field(when, names.join(" "));
        }
        key.field("postgres", &self.postgres_bin).finish()
    }

    /// Turns the text of a recipe into one.
    ///
    /// # Errors
    /// With the place of the first mistake.
    pub fn parse(name: ImageName, file: &Path, text: &str) -> Result<Recipe, Problem> {
        let source = Source { file, text };
        let raw: RawRecipe = source.parse()?;
        let empty = |what: &Spanned<Vec<Spanned<String>>>| what.get_ref().is_empty();
        if raw.about.get_ref().trim().is_empty() {
            return Err(source.problem(
                raw.about.span(),
                "`about` is empty, expected one line for people",
            ));
        }
        if empty(&raw.components) {
            return Err(source.problem(
                raw.components.span(),
                "no component, expected for instance [\"main\"]",
            ));
        }
        if empty(&raw.packages) {
            return Err(source.problem(
                raw.packages.span(),
                "no package, expected at least a kernel",
            ));
        }
        let suites = suites(source, &raw.source)?;
        let packages = packages(source, raw.packages.get_ref(), &raw.source)?;
        let components = spelt(source, raw.components.get_ref(), Spelling::COMPONENT)?;
        let bin = &raw.postgres.bin;
        if !bin.get_ref().starts_with('/') {
            return Err(source.problem(
                bin.span(),
                format!("expected an absolute path, found {:?}", bin.get_ref()),
            ));
        }
        let headroom = parse_size(raw.disk.headroom.get_ref()).ok_or_else(|| {
            let found = raw.disk.headroom.get_ref();
            source.problem(
                raw.disk.headroom.span(),
                format!("expected a size such as \"64 MiB\", found {found:?}"),
            )
        })?;
        Ok(Recipe {
            name,
            file: file.to_owned(),
            about: raw.about.into_inner(),
            suites,
            components,
            packages,
            postgres_bin: raw.postgres.bin.into_inner(),
            modules: Modules {
                early: spelt(source, &raw.modules.early, Spelling::MODULE)?,
                late: spelt(source, &raw.modules.late, Spelling::MODULE)?,
                kept: spelt(source, &raw.modules.kept, Spelling::MODULE)?,
            },
            headroom,
            extra: Vec::new(),
        })
    }
}

/// The names of all recipes in a directory, sorted.
///
/// # Errors
/// When the directory cannot be read, or a recipe's name is malformed.
pub fn names(dir: &Path) -> Result<Vec<ImageName>> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("no image recipes: cannot read {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            names.push(ImageName::new(&stem).with_context(|| path.display().to_string())?);
        }
    }
    names.sort();
    Ok(names)
}

fn suites(source: Source<'_>, raw: &[RawSource]) -> Result<Vec<Suite>, Problem> {
    let mut seen = BTreeSet::new();
    raw.iter()
        .map(|raw| {
            let name = Spelling::SUITE.check(source, &raw.suite)?;
            if !seen.insert(name.clone()) {
                return Err(
                    source.problem(raw.suite.span(), format!("the suite {name} is named twice"))
                );
            }
            let archive = match raw.archive {
                RawArchive::Main => Archive::Main,
                RawArchive::Security => Archive::Security,
            };
            Ok(Suite { name, archive })
        })
        .collect()
}

/// Joins the list of packages with what sources say about some of them.
fn packages(
    source: Source<'_>,
    raw: &[Spanned<String>],
    sources: &[RawSource],
) -> Result<Vec<String>, Problem> {
    let mut packages = spelt(source, raw, Spelling::PACKAGE)?;
    for from in sources {
        for pinned in &from.packages {
            let name = pinned.get_ref();
            let Some(package) = packages.iter_mut().find(|package| *package == name) else {
                let near = nearest(name, raw.iter().map(|raw| raw.get_ref().as_str()));
                let near = near
                    .map(|near| format!("; did you mean {near:?}?"))
                    .unwrap_or_default();
                let message =
                    format!("{name:?} is not in `packages`, or taken from two suites{near}");
                return Err(source.problem(pinned.span(), message));
            };
            *package = format!("{name}/{}", from.suite.get_ref());
        }
    }
    Ok(packages)
}

/// Whether a text can name a Debian package (Debian Policy 5.6.7).
pub fn is_package_name(text: &str) -> bool {
    Spelling::PACKAGE.fits(text)
}

/// How a kind of name is spelt.
#[derive(Clone, Copy)]
struct Spelling {
    what: &'static str,
    also: &'static str,
    upper: bool,
}

impl Spelling {
    /// Debian Policy 5.6.7.
    const PACKAGE: Spelling = Spelling {
        what: "a package's name",
        also: "+-.",
        upper: false,
    };
    const SUITE: Spelling = Spelling {
        what: "a suite's name",
        also: "-./",
        upper: false,
    };
    const COMPONENT: Spelling = Spelling {
        what: "a component's name",
        also: "-/",
        upper: false,
    };
    const MODULE: Spelling = Spelling {
        what: "a kernel module's name",
        also: "-_",
        upper: true,
    };

    fn fits(self, text: &str) -> bool {
        let letter = |c: char| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || (self.upper && c.is_ascii_uppercase())
        };
        text.starts_with(letter) && text.chars().all(|c| letter(c) || self.also.contains(c))
    }

    fn check(self, source: Source<'_>, name: &Spanned<String>) -> Result<String, Problem> {
        let text = name.get_ref();
        if !self.fits(text) {
            return Err(source.problem(
                name.span(),
                format!("expected {}, found {text:?}", self.what),
            ));
        }
        Ok(text.clone())
    }
}

fn spelt(
    source: Source<'_>,
    raw: &[Spanned<String>],
    spelling: Spelling,
) -> Result<Vec<String>, Problem> {
    let mut seen = BTreeSet::new();
    raw.iter()
        .map(|name| {
            let text = spelling.check(source, name)?;
            if !seen.insert(text.clone()) {
                return Err(source.problem(name.span(), format!("{text:?} is listed twice")));
            }
            Ok(text)
        })
        .collect()
}

/// "64 MiB" in bytes.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = text.trim().split_once(' ')?;
    let shift = match unit.trim() {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests;
