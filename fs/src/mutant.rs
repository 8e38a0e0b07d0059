//! Deliberately wrong variants of this filesystem, for testing the testbed.
//!
//! A mutant is named on the command line of a binary that was built with the
//! feature `mutants`; in every other binary [`active`] is a constant `false` and
//! the wrong lines are not compiled to anything. Each wrong line stands beside the
//! right one and asks [`active`].
//!
//! Simulated are programming errors in this server. Nothing here simulates the
//! kernel, the lower filesystem or the disk.

use std::fmt;
use std::str::FromStr;

/// One deliberate error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The descriptor's number is the FUSE handle, and RELEASE closes the
    /// descriptor before it removes the table's entry. Between the two it waits, so
    /// that another thread reuses the number nearly every time.
    FdAsHandle,
    /// The same without the wait: fails at its natural rate, for measurements.
    FdAsHandleBare,
    /// fsync and fdatasync of files answer success and do nothing.
    FsyncIgnored,
    /// RELEASE closes the descriptor before it removes the table's entry, although
    /// handles are numbers that never repeat: a request in between, and a RELEASE that
    /// comes twice, meet a descriptor that is closed or somebody else's.
    CloseBeforeRemove,
    /// FORGET takes back one lookup, however many the kernel gives back.
    ForgetMiscounted,
    /// A new file that has got a known inode's number is given the old one's generation.
    StaleGeneration,
}

impl Mutant {
    /// Every mutant, in the order in which they are listed to users.
    pub const ALL: [Mutant; 6] = [
        Mutant::FdAsHandle,
        Mutant::FdAsHandleBare,
        Mutant::FsyncIgnored,
        Mutant::CloseBeforeRemove,
        Mutant::ForgetMiscounted,
        Mutant::StaleGeneration,
    ];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mutant::FdAsHandle => "fd-as-handle",
            Mutant::FdAsHandleBare => "fd-as-handle-bare",
            Mutant::FsyncIgnored => "fsync-ignored",
            Mutant::CloseBeforeRemove => "close-before-remove",
            Mutant::ForgetMiscounted => "forget-miscounted",
            Mutant::StaleGeneration => "stale-generation",
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Mutant::ALL
            .into_iter()
            .find(|mutant| mutant.name() == name)
            .ok_or_else(|| {
                let known: Vec<_> = Mutant::ALL.iter().map(|m| m.name()).collect();
                format!("no such mutant; there are {}", known.join(", "))
            })
    }
}

#[cfg(feature = "mutants")]
static SELECTED: std::sync::OnceLock<Mutant> = std::sync::OnceLock::new();

/// Makes this process the given mutant, for good. Later calls change nothing.
#[cfg(feature = "mutants")]
pub fn select(mutant: Mutant) {
    tracing::warn!(%mutant, "this server is wrong on purpose");
    SELECTED.get_or_init(|| mutant);
}

/// Whether this process is the given mutant.
#[cfg(feature = "mutants")]
#[must_use]
pub fn active(mutant: Mutant) -> bool {
    SELECTED.get() == Some(&mutant)
}

/// Whether this process is the given mutant: never, in an honest build.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn active(_mutant: Mutant) -> bool {
    false
}
