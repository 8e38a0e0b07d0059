//! What a run leaves for people and programs to read: one report in three forms.

use std::path::Path;

use anyhow::{Context, Result};
use plugpull_lab::{
    browser, prepare,
    progress::{Event, Progress},
    report::{self, Report, exploration, html},
    rundir::RunDir,
};
use plugpull_vm::host;

use crate::commands::Failed;

const JUNIT: &str = "junit.xml";

/// Write them into the run's directory.
pub(crate) fn write(dir: &RunDir, report: &Report) -> Result<()> {
    let explorations = exploration::of_run(dir.path(), report);
    let page = html::page(report, &explorations);
    let files = [
        (report::JSON, serde_json::to_vec_pretty(report)?),
        (JUNIT, report::junit(report)?.into_bytes()),
        (html::FILE, page.into_bytes()),
    ];
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Where a person finds them.
pub(crate) fn places(dir: &Path) -> String {
    format!(
        "report: {}\n        {}\n",
        dir.join(html::FILE).display(),
        dir.join(report::JSON).display()
    )
}

/// Look at the page in a browser, where there is one; where not, say so.
///
/// # Errors
/// [`Failed`] when the page is not as it should be.
pub(crate) fn look(dir: &Path, progress: &dyn Progress) -> Result<()> {
    let page = dir.join(html::FILE);
    let missing = match browser::find() {
        Some(_) => None,
        None => prepare::ensure_host(&host::TO_LOOK, progress).err(),
    };
    let Some(browser) = browser::find() else {
        let why = missing.map_or_else(String::new, |error| format!(": {error:#}"));
        let text = format!("{} was looked at in no browser{why}", page.display());
        progress.tell(&Event::Warning { text });
        return Ok(());
    };
    let wrong = browser::look(&browser, &page, &dir.join("looks"))?;
    if !wrong.is_empty() {
        let text = format!(
            "{} is not as it should be:\n  {}",
            page.display(),
            wrong.join("\n  ")
        );
        return Err(Failed(text).into());
    }
    let text = format!(
        "{} was looked at in {}: {}",
        page.display(),
        browser.display(),
        dir.join("looks").display()
    );
    progress.tell(&Event::Notice { text });
    Ok(())
}
