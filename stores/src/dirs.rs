//! What it takes to make a name durable.

use std::{fs::File, path::Path};

use anyhow::{Context, Result};

/// fsync a directory: a new name in it is durable only then (fsync(2)).
pub(crate) fn sync(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.with_context(|| format!("sync {}", dir.display()))
}
