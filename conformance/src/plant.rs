//! Planted faults: the side of the mount is given another call than it should, so that
//! a correct filesystem looks like a wrong one. Each must be found, or the oracle is
//! blind.

use rustix::fs::{OFlags, RenameFlags};

use crate::op::{Op, Time};

/// One way in which the mount seems wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// Files are truncated to one byte more.
    TruncateOffByOne,
    /// O_APPEND set by fcntl(2) is forgotten.
    AppendDropped,
    /// O_EXCL is ignored.
    ExclusiveIgnored,
    /// The flags of renameat2(2) are ignored.
    RenameFlagsIgnored,
    /// Every write loses its last byte and says so to nobody but the file.
    ShortWrite,
    /// Nanoseconds of a modification time are dropped.
    TimesInSeconds,
    /// Set-id and sticky bits are not set.
    SetIdDropped,
    /// Everybody is root.
    EverybodyIsRoot,
    /// The umask is not applied.
    UmaskIgnored,
    /// Extended attributes are replaced where XATTR_CREATE forbids it.
    XattrFlagsIgnored,
}

impl Plant {
    /// The call that the mount gets instead.
    pub(crate) fn distort(self, mut op: Op) -> Op {
        match (self, &mut op) {
            (Plant::TruncateOffByOne, Op::Truncate { length, .. }) => *length += 1,
            (Plant::AppendDropped, Op::SetFlags { flags, .. }) => flags.remove(OFlags::APPEND),
            (Plant::ExclusiveIgnored, Op::Open { flags, .. }) => flags.remove(OFlags::EXCL),
            (Plant::RenameFlagsIgnored, Op::Rename { flags, .. }) => *flags = RenameFlags::empty(),
            (Plant::ShortWrite, Op::Write { length, .. }) => *length = length.saturating_sub(1),
            (
                Plant::TimesInSeconds,
                Op::SetTimes {
                    modification: Time::At(_, nanoseconds),
                    ..
                },
            ) => {
                *nanoseconds = 0;
            }
            (Plant::SetIdDropped, Op::SetMode { mode, .. }) => mode.0 &= 0o777,
            (Plant::EverybodyIsRoot, Op::Become(user)) => *user = crate::op::User::Root,
            (Plant::UmaskIgnored, Op::Umask(mask)) => mask.0 = 0,
            (Plant::XattrFlagsIgnored, Op::SetXattr { flags, .. }) => *flags = 0,
            _ => {}
        }
        op
    }
}
