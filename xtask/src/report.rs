//! What a run leaves for people and programs to read: one report in two forms.

use std::path::Path;

use anyhow::{Context, Result};
use plugpull_lab::{
    report::{self, Report},
    rundir::RunDir,
};

const JUNIT: &str = "junit.xml";

/// Write them into the run's directory.
pub(crate) fn write(dir: &RunDir, report: &Report) -> Result<()> {
    let files = [
        (report::JSON, serde_json::to_vec_pretty(report)?),
        (JUNIT, report::junit(report)?.into_bytes()),
    ];
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Where a person finds them.
pub(crate) fn places(dir: &Path) -> String {
    format!("report: {}\n", dir.join(report::JSON).display())
}
