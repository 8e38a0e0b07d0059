//! What a scenario works with: its directory, and a log of what it sees.

use std::cell::RefCell;
use std::fmt::{Debug, Display};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

use crate::op::User;
use crate::outcome::Stat;
use crate::world::set_identity;

/// A directory of its own for one scenario on one side.
pub(super) struct Scene {
    pub dir: PathBuf,
    entries: RefCell<Vec<Entry>>,
}

/// One observation.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    label: String,
    seen: String,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    /// Equal on both sides, whatever it is.
    Equal,
    /// This, on both.
    Is(String),
    /// This on the mount, by a limit of the protocol, and something else on the plain
    /// directory.
    Limit { mount: String, reason: &'static str },
}

impl Scene {
    pub(super) fn new(dir: PathBuf) -> Self {
        Scene {
            dir,
            entries: RefCell::default(),
        }
    }

    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.entries.into_inner()
    }

    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Notes what must be equal on both sides.
    pub(super) fn see(&self, label: impl Display, seen: impl Debug) {
        self.note(label, seen, Rule::Equal);
    }

    /// Notes what must be this on both sides.
    pub(super) fn expect(&self, label: impl Display, seen: impl Debug, expected: impl Debug) {
        self.note(label, seen, Rule::Is(format!("{expected:?}")));
    }

    /// Notes where the protocol makes the mount answer otherwise. A limit that is gone
    /// fails too, so that the documentation follows.
    pub(super) fn limit(
        &self,
        reason: &'static str,
        label: impl Display,
        seen: impl Debug,
        mount: impl Debug,
    ) {
        self.note(
            label,
            seen,
            Rule::Limit {
                mount: format!("{mount:?}"),
                reason,
            },
        );
    }

    fn note(&self, label: impl Display, seen: impl Debug, rule: Rule) {
        let entry = Entry {
            label: label.to_string(),
            seen: format!("{seen:?}"),
            rule,
        };
        self.entries.borrow_mut().push(entry);
    }

    /// A new file, readable and writable for all, with these bytes.
    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> Result<File> {
        use std::os::unix::fs::{FileExt, PermissionsExt};
        let path = self.path(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("create {name}"))?;
        file.write_all_at(bytes, 0)
            .with_context(|| format!("write {name}"))?;
        file.set_permissions(fs::Permissions::from_mode(0o666))?;
        Ok(file)
    }

    /// Opens with these flags, for reading and writing.
    pub(super) fn open(&self, name: &str, flags: i32) -> Result<File, Errno> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(self.path(name));
        open.map_err(|error| errno(&error))
    }

    /// Everything statx(2) says about a name.
    pub(super) fn stat(&self, name: impl AsRef<Path>) -> Result<Stat, Errno> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        statx(CWD, self.path(name), AtFlags::SYMLINK_NOFOLLOW, mask).map(|statx| Stat::of(&statx))
    }

    /// Permission bits of a name.
    pub(super) fn mode(&self, name: impl AsRef<Path>) -> Result<String, Errno> {
        self.stat(name)
            .map(|stat| format!("{:04o}", stat.mode & 0o7777))
    }

    /// Does something as somebody else.
    pub(super) fn as_user<T>(&self, user: User, action: impl FnOnce() -> T) -> Result<T> {
        set_identity(user).with_context(|| format!("become {user:?}; run as root"))?;
        let result = action();
        set_identity(User::Root).context("become root again")?;
        Ok(result)
    }
}

/// The errno in a standard library error.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The errno, or nothing: what most calls answer.
pub(super) fn code<T>(result: std::io::Result<T>) -> Result<(), Errno> {
    result.map(drop).map_err(|error| errno(&error))
}

impl Entry {
    /// `self` was seen on the mount, the other on the plain directory.
    pub(super) fn difference(&self, plain: &Entry) -> Option<String> {
        let Entry { label, seen, rule } = self;
        if label != &plain.label {
            return Some(format!("the sides went apart: {label} and {}", plain.label));
        }
        match rule {
            // The filesystem below may not have it either.
            Rule::Limit { mount, .. } if seen == mount => None,
            Rule::Limit { reason, .. } if seen == &plain.seen => {
                Some(format!("{label}: a known limit is gone ({reason}): {seen}"))
            }
            Rule::Limit { mount, .. } => Some(format!(
                "{label}: the mount says {seen}, by a known limit it should be {mount}"
            )),
            Rule::Is(expected) if &plain.seen != expected => {
                let plain = &plain.seen;
                Some(format!(
                    "{label}: the plain directory says {plain}, not {expected}"
                ))
            }
            Rule::Is(_) | Rule::Equal => (seen != &plain.seen)
                .then(|| format!("{label}: the mount says {seen}, should be {}", plain.seen)),
        }
    }
}
