//! Scenarios, the runner, crash-state exploration, oracles and reports.

pub mod artifacts;
pub mod base;
pub mod bench;
pub mod browser;
pub mod capsule;
pub mod doors;
pub mod merge;
mod minimise;
pub mod mounts;
mod naming;
pub mod oracle;
pub mod prepare;
pub mod programs;
pub mod progress;
pub mod report;
pub mod repro;
pub mod room;
pub mod rundir;
pub mod runner;
pub mod scenario;
pub mod select;
pub mod session;
pub mod sharing;
pub mod shell;
pub mod suite;
pub mod testbed;
mod text;
