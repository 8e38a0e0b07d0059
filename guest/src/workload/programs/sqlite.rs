//! Concurrent sqlite3 processes commit to one database, in WAL mode and with a
//! rollback journal.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plugpull_protocol::workload::plan::{Database, JOURNAL_MODES};

use super::{Stage, flip};
use crate::process::Spec;

/// How long a writer waits for its turn, in milliseconds.
const BUSY_MS: u32 = 120_000;
/// The question after the counter that all writers count up.
const COUNT: &str = "count of commits";

/// Make a database for each journal mode and let all writers in at once.
pub(super) fn run(stage: &mut Stage, plan: &Database) -> Result<()> {
    fs::create_dir_all(&stage.dir).with_context(|| format!("make {}", stage.dir.display()))?;
    for mode in JOURNAL_MODES {
        let schema = format!(
            "PRAGMA journal_mode={mode};\n\
             CREATE TABLE entry(writer INT, n INT, part INT, body TEXT, PRIMARY KEY(writer, n, part));\n\
             CREATE INDEX by_body ON entry(body);\n\
             CREATE TABLE counter(commits INT);\n\
             INSERT INTO counter VALUES(0);\n"
        );
        let script = script(stage, &format!("{mode}-schema"), &schema)?;
        let database = database(&stage.dir, mode);
        let what = format!("sqlite3 makes a database with journal_mode={mode}");
        if !stage.step(&what, sqlite(&database, &script), &[], Some(mode))? {
            return Ok(());
        }
        let mut writers = Vec::new();
        for writer in 0..plan.writers {
            let text = transactions(plan, writer);
            let script = self::script(stage, &format!("{mode}-writer-{writer}"), &text)?;
            writers.push(Spec::new(sqlite(&database, &script)).spawn()?);
        }
        for (writer, mut process) in writers.into_iter().enumerate() {
            let exited = process.wait(stage.timeout)?;
            let what = format!("sqlite3 as writer {writer} with journal_mode={mode}");
            stage.report(&what, exited, Some(""));
        }
    }
    Ok(())
}

/// All transactions of a writer. The counter is where writers meet: an update
/// that is lost or doubled shows in it.
fn transactions(plan: &Database, writer: u32) -> String {
    let mut text = format!(".timeout {BUSY_MS}\nPRAGMA synchronous=FULL;\n");
    for n in 1..=plan.transactions {
        text.push_str("BEGIN IMMEDIATE;\n");
        for (part, body) in plan.rows(writer, n).iter().enumerate() {
            text.push_str(&format!(
                "INSERT INTO entry VALUES({writer}, {n}, {part}, '{body}');\n"
            ));
        }
        text.push_str("UPDATE counter SET commits = commits + 1;\n");
        text.push_str(if plan.rolls_back(n) {
            "ROLLBACK;\n"
        } else {
            "COMMIT;\n"
        });
    }
    text
}

/// Have SQLite check both databases, and compare every row with the plan.
pub(super) fn check(stage: &mut Stage, plan: &Database) -> Result<()> {
    let commits = plan.commits().to_string();
    for mode in JOURNAL_MODES {
        let database = database(&stage.dir, mode);
        let rows = stage.scratch.join(format!("sqlite-{mode}-rows"));
        let asked = [
            (
                "integrity_check",
                "PRAGMA integrity_check;\n".to_owned(),
                "ok",
            ),
            (
                COUNT,
                "SELECT commits FROM counter;\n".to_owned(),
                &*commits,
            ),
            ("journal_mode", "PRAGMA journal_mode;\n".to_owned(), mode),
            (
                "rows",
                format!(
                    ".output {}\n.mode list\n.separator \" \"\n\
                     SELECT writer, n, part, body FROM entry ORDER BY writer, n, part;\n",
                    rows.display()
                ),
                "",
            ),
        ];
        let mut readable = true;
        for (question, text, expected) in asked {
            let script = script(stage, &format!("{mode}-{question}"), &text)?;
            let what = format!("sqlite3: {question} with journal_mode={mode}");
            readable = stage.step(&what, sqlite(&database, &script), &[], Some(expected))?;
            if question == COUNT {
                stage.count_commits();
            }
        }
        if readable {
            let found = fs::read_to_string(&rows);
            let found = found.with_context(|| format!("read {}", rows.display()))?;
            compare(stage, plan, mode, &found);
        }
    }
    Ok(())
}

/// Every row as written, none twice, and no other.
fn compare(stage: &mut Stage, plan: &Database, mode: &str, found: &str) {
    let mut found = found.lines().peekable();
    for writer in 0..plan.writers {
        for n in plan.committed() {
            for (part, body) in plan.rows(writer, n).iter().enumerate() {
                let key = format!("{writer} {n} {part} ");
                // Rows that come before this one in SQLite's order are nobody's.
                let place = (u64::from(writer), u64::from(n), part as u64);
                while let Some(row) = found.next_if(|row| before(row, place)) {
                    stage.differs(|| format!("{mode}: nobody wrote row {}", named(row)));
                }
                match found.next_if(|row| row.starts_with(&key)) {
                    Some(row) if row[key.len()..] == **body => stage.run.rows += 1,
                    Some(_) => stage.differs(|| format!("{mode}: row {key}has another text")),
                    None => stage.differs(|| format!("{mode}: row {key}is missing")),
                }
            }
        }
    }
    for row in found {
        stage.differs(|| format!("{mode}: nobody wrote row {}", named(row)));
    }
}

/// Whether a row's key comes before another; what has no key comes first.
fn before(row: &str, place: (u64, u64, u64)) -> bool {
    let mut numbers = row.split(' ').map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    match (next(), next(), next()) {
        (Some(writer), Some(n), Some(part)) => (writer, n, part) < place,
        _ => true,
    }
}

fn named(row: &str) -> &str {
    row.get(..40).unwrap_or(row)
}

/// Flip a bit of a row's text in the database with the write-ahead log, which
/// the last connection has merged into it.
pub(super) fn damage(dir: &Path, plan: &Database) -> Result<()> {
    let path = database(dir, JOURNAL_MODES[0]);
    let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let rows = plan.committed().flat_map(|n| plan.rows(0, n));
    for row in rows {
        let text = row.as_bytes();
        if let Some(at) = content.windows(text.len()).position(|bytes| bytes == text) {
            return flip(&path, at as u64 + 1);
        }
    }
    bail!("no row of writer 0 is in {}", path.display())
}

fn database(dir: &Path, mode: &str) -> PathBuf {
    dir.join(format!("{mode}.db"))
}

/// Write a script in memory, so that only the database is on the mount.
fn script(stage: &Stage, name: &str, text: &str) -> Result<PathBuf> {
    let path = stage
        .scratch
        .join(format!("sqlite-{}.sql", name.replace(' ', "-")));
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The program, which stops at the first error.
fn sqlite(database: &Path, script: &Path) -> [std::ffi::OsString; 5] {
    let read = format!(".read {}", script.display());
    [
        "sqlite3".into(),
        "-batch".into(),
        "-bail".into(),
        database.into(),
        read.into(),
    ]
}
