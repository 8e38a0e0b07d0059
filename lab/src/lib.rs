//! Scenarios, the runner, crash-state exploration, oracles and reports.
