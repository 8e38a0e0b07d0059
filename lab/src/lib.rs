//! Scenarios, the runner, crash-state exploration, oracles and reports.

pub mod oracle;
pub mod progress;
pub mod report;
pub mod rundir;
pub mod scenario;
pub mod select;
