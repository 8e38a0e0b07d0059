//! Is a mounted filesystem the same as a plain directory?
//!
//! Everything here works on two paths: a directory in the mount under test, and a plain
//! directory on the filesystem that the mount shows. Nothing of the filesystem under
//! test is linked, so the same program runs on the host and, linked statically, in
//! guests, against any filesystem.
//!
//! - [`differential`] applies random sequences of system calls to both and compares
//!   every answer; a failure shrinks to a script.
//! - [`check`] runs named scenarios, one function each, on both.
//! - [`fsx`] runs the fsx program, which checks one file against its own memory.
//!
//! What FUSE itself cannot do is in one table, [`known`], each line with its reason.

pub mod check;
pub mod cli;
pub mod client;
pub mod differential;
pub mod fsx;
pub mod known;
mod op;
mod outcome;
pub mod plant;
mod side;
mod strategy;
mod sys;
mod tree;
mod world;
