//! `vm-images/NAME.lock`: exactly which packages an image is made of.
//!
//! The lock is written by `image update` and committed. A build asks the
//! archive for these versions and checks the hashes of what it gets. When the
//! archive no longer has one of them, or the recipe asks for other packages than
//! the lock was made for, the build resolves anew and says so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::apt::Package;
use super::problem::{Problem, Source};
use super::recipe::Recipe;
use crate::cache::{ContentHash, publish_bytes};

const SCHEMA: u32 = 1;

/// The pinned packages of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// [`Recipe::packages_key`] of the recipe it was made for.
    pub recipe: ContentHash,
    /// Sorted by name.
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLock {
    schema: toml::Spanned<u32>,
    recipe: ContentHash,
    packages: BTreeMap<String, RawPackage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPackage {
    version: String,
    sha256: ContentHash,
}

/// How what was unpacked differs from the lock, where that is no accident.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{package} {version} is not what the lock pins: its SHA-256 is {found}, the lock has {pinned}"
)]
pub struct HashMismatch {
    /// The package.
    pub package: String,
    /// Its version, which is the lock's.
    pub version: String,
    /// The lock's hash.
    pub pinned: ContentHash,
    /// The hash of what the archive gave.
    pub found: ContentHash,
}

impl Lock {
    /// Reads the lock beside a recipe; `None` when there is none yet.
    ///
    /// # Errors
    /// [`Problem`] when it is malformed.
    pub fn load(recipe: &Recipe) -> Result<Option<Lock>> {
        let file = recipe.lock_file();
        if !file.exists() {
            return Ok(None);
        }
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Some(Lock::parse(&file, &text)?))
    }

    /// Turns the text of a lock into one.
    ///
    /// # Errors
    /// With the place of the first mistake.
    pub fn parse(file: &Path, text: &str) -> Result<Lock, Problem> {
        let source = Source { file, text };
        let raw: RawLock = source.parse()?;
        if *raw.schema.get_ref() != SCHEMA {
            let message = format!(
                "a lock of schema {}, expected {SCHEMA}",
                raw.schema.get_ref()
            );
            return Err(source.problem(raw.schema.span(), message));
        }
        let packages = raw.packages.into_iter();
        let packages = packages.map(|(name, RawPackage { version, sha256 })| Package {
            name,
            version,
            sha256,
        });
        Ok(Lock {
            recipe: raw.recipe,
            packages: packages.collect(),
        })
    }

    /// Writes it to its place whole.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        publish_bytes(file, self.to_text().as_bytes())
    }

    /// One line per package, so that a change shows as one.
    pub fn to_text(&self) -> String {
        let mut text = String::from("# Written by `cargo xtask image update`.\n");
        let quoted = |value: &str| toml::Value::from(value).to_string();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "schema = {SCHEMA}\nrecipe = {}\n\n[packages]",
            quoted(self.recipe.as_str())
        );
        for Package {
            name,
            version,
            sha256,
        } in &self.packages
        {
            let (version, sha256) = (quoted(version), quoted(sha256.as_str()));
            let _ = writeln!(
                text,
                "{} = {{ version = {version}, sha256 = {sha256} }}",
                quoted(name)
            );
        }
        text
    }

    /// Every package with its exact version, as apt takes it.
    pub fn requests(&self) -> Vec<String> {
        self.packages
            .iter()
            .map(|Package { name, version, .. }| format!("{name}={version}"))
            .collect()
    }

    /// Checks what was unpacked against the pinned hashes.
    ///
    /// # Errors
    /// When a package of a pinned version has other bytes.
    pub fn verify(&self, used: &[Package]) -> Result<(), HashMismatch> {
        let pinned: BTreeMap<_, _> = self
            .packages
            .iter()
            .map(|pin| ((&pin.name, &pin.version), &pin.sha256))
            .collect();
        for Package {
            name,
            version,
            sha256,
        } in used
        {
            match pinned.get(&(name, version)) {
                Some(pin) if *pin != sha256 => {
                    return Err(HashMismatch {
                        package: name.clone(),
                        version: version.clone(),
                        pinned: (*pin).clone(),
                        found: sha256.clone(),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            sha256: ContentHash::of(name),
        }
    }

    fn lock() -> Lock {
        let packages = vec![
            package("libstdc++6", "12.2.0-14"),
            package("passwd", "1:4.13+dfsg1-1~deb12u2"),
        ];
        Lock {
            recipe: ContentHash::of("recipe"),
            packages,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = lock().to_text();
        assert_eq!(Lock::parse(Path::new("x.lock"), &text).unwrap(), lock());
        assert_eq!(text.lines().count(), 7, "{text}");
        assert_eq!(
            lock().requests(),
            ["libstdc++6=12.2.0-14", "passwd=1:4.13+dfsg1-1~deb12u2"]
        );
    }

    #[test]
    fn mistakes_have_their_place() {
        let message = |text: &str| {
            Lock::parse(Path::new("x.lock"), text)
                .unwrap_err()
                .to_string()
        };
        let text = lock().to_text();
        assert_eq!(
            message(&text.replace("schema = 1", "schema = 9")),
            "x.lock:2:10: a lock of schema 9, expected 1"
        );
        let cut = &text[..text.len() - 20];
        assert!(message(cut).starts_with("x.lock:7:"), "{}", message(cut));
        assert_eq!(
            message(&text.replacen("sha256 =", "sha265 =", 1)),
            "x.lock:6:53: unknown field `sha265`, expected `version` or `sha256`; did you mean `sha256`?"
                .replace("53", &(text.lines().nth(5).unwrap().find("sha256").unwrap() + 1).to_string())
        );
    }

    #[test]
    fn other_bytes_under_a_pinned_version_are_refused() {
        let mut used = lock().packages;
        assert_eq!(lock().verify(&used), Ok(()));
        used[1].sha256 = ContentHash::of("something else");
        assert_eq!(lock().verify(&used).unwrap_err().package, "passwd");
        used[1].version = "1:4.13+dfsg1-1~deb12u3".into();
        assert_eq!(
            lock().verify(&used),
            Ok(()),
            "a newer version is another matter"
        );
    }
}
