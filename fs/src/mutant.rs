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

/// Declares the mutants: each with its name on the command line.
macro_rules! mutants {
    ($($(#[doc = $about:literal])* $variant:ident = $name:literal,)*) => {
        /// One deliberate error.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant { $($(#[doc = $about])* $variant,)* }

        impl Mutant {
            /// Every mutant, in the order in which they are listed to users.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$variant,)*];

            /// The name on the command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Mutant::$variant => $name,)* }
            }
        }
    };
}

mutants! {
    /// The descriptor's number is the FUSE handle, and RELEASE closes the
    /// descriptor before it removes the table's entry. Between the two it waits, so
    /// that another thread reuses the number nearly every time.
    FdAsHandle = "fd-as-handle",
    /// The same without the wait: fails at its natural rate, for measurements.
    FdAsHandleBare = "fd-as-handle-bare",
    /// RELEASE closes the descriptor before it removes the table's entry, although
    /// handles are numbers that never repeat: a request in between, and a RELEASE that
    /// comes twice, meet a descriptor that is closed or somebody else's.
    CloseBeforeRemove = "close-before-remove",
    /// A handle that nobody knows is answered by opening the node anew: the fallback
    /// that hid the first of these errors for months.
    ReopenOnEbadf = "reopen-on-ebadf",
    /// The `O_SYNC` and `O_DSYNC` of a WRITE are not looked at.
    DsyncDropped = "dsync-dropped",
    /// fsync and fdatasync of files answer success and do nothing.
    FsyncIgnored = "fsync-ignored",
    /// fsync of directories answers success and does nothing.
    FsyncdirIgnored = "fsyncdir-ignored",
    /// fsync is done, and answers success whatever came of it.
    FsyncErrorSwallowed = "fsync-error-swallowed",
    /// fsync is done and answers ENOSYS, which the kernel takes for "always succeeds".
    EnosysFsync = "enosys-fsync",
    /// The lower file is opened with `O_APPEND`: its writes ignore their offset.
    AppendFlagKept = "append-flag-kept",
    /// A new file that has got a known inode's number is given the old one's generation.
    StaleGeneration = "stale-generation",
    /// FORGET takes back one lookup, however many the kernel gives back.
    ForgetMiscounted = "forget-miscounted",
    /// rename is done without its flags.
    RenameFlagsIgnored = "rename-flags-ignored",
    /// A change of size goes to the file that was opened last.
    SetattrTruncatesWrongHandle = "setattr-truncates-wrong-handle",
    /// A write of which a part fitted says that all of it did.
    ShortWriteUnreported = "short-write-unreported",
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
            .iter()
            .copied()
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
