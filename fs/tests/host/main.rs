//! Real mounts on the host, in a mount namespace of their own; needs root and
//! `/dev/fuse`, fusermount3, git, tar, perl, fsx, the mkfs programs of ext4, XFS and
//! Btrfs, and for the feature `host-postgres` a PostgreSQL. `cargo xtask test` installs what is missing.
//!
//! With the feature `mutants` the same checks are run on wrong variants, which must
//! fail them.

mod cache;
mod command;
mod conformance;
mod deadlines;
mod directories;
mod errors;
mod escape;
mod exchange;
mod files;
mod harness;
mod limits;
mod modes;
mod mutants;
mod nodes;
mod operations;
mod ordinary_user;
mod permissions;
#[cfg(feature = "host-postgres")]
mod postgres;
mod semantics;
mod special;
mod sync;
mod tools;
mod uring;
