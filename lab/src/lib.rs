//! Scenarios, the runner, crash-state exploration, oracles and reports.

pub mod scenario;
