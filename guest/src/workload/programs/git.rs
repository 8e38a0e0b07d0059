//! A repository is made commit by commit, cloned without sharing anything,
//! packed, and checked by git itself.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plugpull_protocol::workload::plan::{Change, Repository};

use super::{Stage, flip, parting};

/// Nothing of the guest's own, and the same commits in every run: names, times
/// and settings are given. An ordinary gc must not come by itself.
const ENV: &[(&str, &str)] = &[
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_CONFIG_COUNT", "1"),
    ("GIT_CONFIG_KEY_0", "gc.auto"),
    ("GIT_CONFIG_VALUE_0", "0"),
    ("GIT_AUTHOR_NAME", "plugpull"),
    ("GIT_AUTHOR_EMAIL", "plugpull@example.org"),
    ("GIT_AUTHOR_DATE", "1700000000 +0000"),
    ("GIT_COMMITTER_NAME", "plugpull"),
    ("GIT_COMMITTER_EMAIL", "plugpull@example.org"),
    ("GIT_COMMITTER_DATE", "1700000000 +0000"),
    ("LC_ALL", "C"),
];

/// The repository and its clone, below the workload's directory.
const REPOSITORIES: [&str; 2] = ["origin", "clone"];

/// Make the repository, clone it, pack the clone.
pub(super) fn run(stage: &mut Stage, plan: &Repository) -> Result<()> {
    let [origin, clone] = REPOSITORIES.map(|name| stage.dir.join(name));
    fs::create_dir_all(&origin).with_context(|| format!("make {}", origin.display()))?;
    if !git(stage, &origin, &["init", "--quiet"], None)? {
        return Ok(());
    }
    for commit in 1..=plan.commits {
        if let Err(error) = write(&origin, plan, commit) {
            stage.differs(|| format!("commit {commit}: {error:#}"));
            return Ok(());
        }
        let message = format!("Commit {commit}");
        let commit = ["commit", "--quiet", "--message", &message];
        if !git(stage, &origin, &["add", "--all"], Some(""))?
            || !git(stage, &origin, &commit, Some(""))?
        {
            return Ok(());
        }
    }
    let paths = [origin.as_os_str(), clone.as_os_str()];
    let argv = ["git", "clone", "--quiet", "--no-local"];
    let argv = argv.iter().map(std::ffi::OsStr::new).chain(paths);
    if stage.step("git clone", argv, ENV, Some(""))? {
        git(stage, &clone, &["gc", "--quiet", "--prune=now"], Some(""))?;
    }
    Ok(())
}

/// Write what a commit adds, changes and removes.
fn write(origin: &Path, plan: &Repository, commit: u32) -> Result<()> {
    for file in 0..plan.files {
        let path = origin.join(plan.path(file));
        match plan.change(file, commit) {
            None => {}
            Some(Change::Remove) => {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
            Some(Change::Write(content)) => {
                let write = || -> io::Result<()> {
                    fs::create_dir_all(path.parent().unwrap_or(origin))?;
                    fs::write(&path, content)?;
                    fs::set_permissions(&path, Permissions::from_mode(mode(plan, file)))
                };
                write().with_context(|| format!("write {}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn mode(plan: &Repository, file: u32) -> u32 {
    if plan.executable(file) { 0o755 } else { 0o644 }
}

/// Have git check both repositories, and compare both work trees with the
/// plan.
pub(super) fn check(stage: &mut Stage, plan: &Repository) -> Result<()> {
    let commits = plan.commits.to_string();
    for name in REPOSITORIES {
        let at = stage.dir.join(name);
        let fsck = ["fsck", "--strict", "--full", "--no-progress"];
        // A repository that git cannot read makes every further word noise.
        if !git(stage, &at, &fsck, Some(""))?
            || !git(
                stage,
                &at,
                &["rev-list", "--count", "--all"],
                Some(&commits),
            )?
        {
            continue;
        }
        stage.count_commits();
        git(stage, &at, &["status", "--porcelain"], Some(""))?;
        work_tree(stage, &at, plan);
    }
    let [origin, clone] = REPOSITORIES.map(|name| stage.dir.join(name));
    let argv = ["diff", "--recursive", "--exclude=.git"].map(Into::into);
    let argv = argv
        .into_iter()
        .chain([origin.into_os_string(), clone.into()]);
    stage.step("diff of the work trees", argv, &[], Some(""))?;
    Ok(())
}

fn work_tree(stage: &mut Stage, at: &Path, plan: &Repository) {
    for file in 0..plan.files {
        let path = at.join(plan.path(file));
        let told = |what: String| format!("{}: {what}", path.display());
        let found = fs::read(&path).and_then(|content| Ok((content, fs::metadata(&path)?)));
        match (plan.content(file), found) {
            (Some(expected), Ok((found, metadata))) => {
                let executable = metadata.permissions().mode() & 0o111 != 0;
                if found != expected {
                    stage.differs(|| told(parting(&expected, &found)));
                } else if executable != plan.executable(file) {
                    stage.differs(|| told(format!("executable is {executable}")));
                } else {
                    stage.run.files += 1;
                }
            }
            (None, Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            (None, Ok(_)) => stage.differs(|| told("is there and was removed".into())),
            (_, Err(error)) => stage.differs(|| told(error.to_string())),
        }
    }
}

/// Flip a bit in the middle of the clone's largest pack: of an object's
/// compressed content.
pub(super) fn damage(dir: &Path) -> Result<()> {
    let packs = dir.join("clone/.git/objects/pack");
    let mut largest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(&packs).with_context(|| format!("list {}", packs.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "pack") {
            largest = largest.max(Some((fs::metadata(&path)?.len(), path)));
        }
    }
    match largest {
        Some((size, path)) => flip(&path, size / 2),
        None => bail!("there is no pack in {}", packs.display()),
    }
}

fn git(stage: &mut Stage, at: &Path, args: &[&str], expected: Option<&str>) -> Result<bool> {
    let name = at.file_name().unwrap_or_default().to_string_lossy();
    let what = format!("git {} in {name}", args[0]);
    let argv = ["git", "-C"].map(Into::into).into_iter();
    let argv = argv.chain([at.as_os_str().to_owned()]);
    let argv = argv.chain(args.iter().map(Into::into));
    stage.step(&what, argv, ENV, expected)
}
