//! A git checkout.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use plugpull_vm::process::Cmd;

use crate::bench::fs::work::Measured;

const DEADLINE: Duration = Duration::from_secs(120);
const FILES_PER_DIR: usize = 50;
const FILE_BYTES: usize = 4000;

/// A repository with this many files, `repository` in `dir`.
///
/// # Errors
/// git's own.
pub(in crate::bench::fs) fn prepare(dir: &Path, files: usize) -> Result<()> {
    let repository = dir.join("repository");
    let mut random = fastrand::Rng::with_seed(1);
    for n in 0..files {
        let parent = repository.join(format!("dir-{:03}", n / FILES_PER_DIR));
        if n % FILES_PER_DIR == 0 {
            fs::create_dir_all(&parent).with_context(|| format!("make {}", parent.display()))?;
        }
        // Letters: git compresses them as it would source code.
        let content: String = (0..FILE_BYTES).map(|_| random.lowercase()).collect();
        let path = parent.join(format!("file-{n:05}"));
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    for args in [
        &["init", "--quiet"][..],
        &["add", "--all"],
        &["commit", "--quiet", "--message", "all of it"],
    ] {
        git(&repository).args(args).run(DEADLINE)?;
    }
    Ok(())
}

/// Checks it out.
///
/// # Errors
/// git's own, or that files are missing.
pub(in crate::bench::fs) fn run(dir: &Path, files: usize, deadline: Duration) -> Result<Measured> {
    let began = Instant::now();
    git(dir)
        .args(["clone", "--quiet", "--shared", "repository", "checkout"])
        .run(deadline)?;
    let seconds = began.elapsed().as_secs_f64();
    let mut found = 0;
    for entry in fs::read_dir(dir.join("checkout"))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name != ".git") {
            found += fs::read_dir(path)?.count();
        }
    }
    ensure!(found == files, "git checked out {found} of {files} files");
    Ok(Measured {
        rate: files as f64 / seconds,
        ops: files as u64,
        seconds,
    })
}

/// git without the settings of whoever runs the bench.
fn git(dir: &Path) -> Cmd {
    Cmd::new("git")
        .dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "bench")
        .env("GIT_AUTHOR_EMAIL", "bench@localhost")
        .env("GIT_COMMITTER_NAME", "bench")
        .env("GIT_COMMITTER_EMAIL", "bench@localhost")
        .own_group()
}
