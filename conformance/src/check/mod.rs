//! Named scenarios: each runs on the mount and on the plain directory, and everything
//! that it saw must be equal and, where a rule is written down, as the rule says.
//!
//! A scenario is a function of a `Scene`; all control flow is here. They are
//! deterministic, and `docs/semantics.md` points at them by name.

mod attributes;
mod data;
mod directories;
mod locks;
mod names;
mod nodes;
mod permissions;
mod scene;
mod unlinked;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::client::{Client, Kernel, Limit};
use crate::sys::private_directory_and_umask;
use scene::{Entry, Scene};

/// What to check.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A directory in the mount under test
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    pub mount: Option<PathBuf>,
    /// A directory on the filesystem that the mount shows
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    pub plain: Option<PathBuf>,
    /// Print names and statements, check nothing
    #[arg(long)]
    pub list: bool,
    /// The mount is a FUSE server's that has its reads and writes done so: the limits of
    /// the kernel's client must be met, and are no failures
    #[arg(long, value_name = "HOW")]
    pub fuse: Option<Client>,
    /// Leave out these checks
    #[arg(long, value_name = "NAME")]
    pub except: Vec<String>,
    /// Only these checks
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// A named scenario.
pub struct Check {
    /// What `docs/semantics.md` calls it.
    pub name: &'static str,
    /// What holds if it passes, in a sentence.
    pub statement: &'static str,
    run: fn(&Scene) -> Result<()>,
}

/// What became of a check.
#[derive(Debug)]
pub struct Verdict {
    /// The check's name.
    pub name: &'static str,
    /// What was expected and what was seen, if they differ.
    pub failure: Option<String>,
    /// Why they differ without being a failure.
    pub limit: Option<&'static str>,
}

/// How long one scenario may take on one side: the largest directory has 100,000 entries.
const DEADLINE: Duration = Duration::from_secs(300);

/// Every check, in the order of the list.
#[must_use]
pub fn all() -> Vec<Check> {
    [
        unlinked::CHECKS,
        directories::CHECKS,
        data::CHECKS,
        attributes::CHECKS,
        nodes::CHECKS,
        permissions::CHECKS,
        names::CHECKS,
        locks::CHECKS,
    ]
    .into_iter()
    .flatten()
    .map(|(name, statement, run)| Check {
        name,
        statement,
        run: *run,
    })
    .collect()
}

/// A line of a table of checks.
type Line = (&'static str, &'static str, fn(&Scene) -> Result<()>);

/// Runs the checks with these names, or all.
///
/// # Errors
/// If a name is unknown or the directories cannot be used.
pub fn run(options: &Options) -> Result<Vec<Verdict>> {
    let (Some(mount), Some(plain)) = (&options.mount, &options.plain) else {
        return Err(anyhow!("give --mount and --plain"));
    };
    let checks = all();
    for name in options.names.iter().chain(&options.except) {
        if !checks.iter().any(|check| check.name == name) {
            return Err(anyhow!("there is no check {name}; --list prints them"));
        }
    }
    let among = |names: &[String], check: &Check| names.iter().any(|name| name == check.name);
    let chosen = |check: &Check| {
        let wanted = options.names.is_empty() || among(&options.names, check);
        wanted && !among(&options.except, check)
    };
    let limits: Vec<_> = match options.fuse {
        Some(client) => client.limits(Kernel::running()?).collect(),
        None => Vec::new(),
    };
    let on_ext4 = is_ext4(plain)?;
    let verdict = |check: &Check| {
        let difference = compare(check, mount, plain)?;
        Ok(judge(check.name, difference, &limits, on_ext4))
    };
    checks
        .iter()
        .filter(|check| chosen(check))
        .map(verdict)
        .collect()
}

fn is_ext4(plain: &Path) -> Result<bool> {
    const EXT4_SUPER_MAGIC: u64 = 0xef53;
    let lower = rustix::fs::statfs(plain).with_context(|| format!("{}", plain.display()))?;
    Ok(lower.f_type as u64 == EXT4_SUPER_MAGIC)
}

/// A limit must be met: where it is gone the table has to follow.
fn judge(
    name: &'static str,
    difference: Option<String>,
    limits: &[&Limit],
    on_ext4: bool,
) -> Verdict {
    let mut of = limits.iter().filter(|limit| limit.check == name);
    let (failure, limit) = match difference {
        None => match of.next() {
            None => (None, None),
            Some(limit) if limit.is_of_ext4 && !on_ext4 => (None, None),
            Some(limit) => {
                let passes = format!("it passes, take it out of the table: {}", limit.reason);
                (Some(passes), None)
            }
        },
        Some(difference) => match of.find(|limit| difference.contains(limit.message)) {
            Some(limit) => (None, Some(limit.reason)),
            None => (Some(difference), None),
        },
    };
    Verdict {
        name,
        failure,
        limit,
    }
}

fn compare(check: &Check, mount: &Path, plain: &Path) -> Result<Option<String>> {
    let plain = observe(check, plain)?;
    let mount = observe(check, mount)?;
    Ok(first_difference(&mount, &plain))
}

/// What a scenario saw, and how it ended early if it did.
struct Observation {
    entries: Vec<Entry>,
    end: Result<(), String>,
}

fn observe(check: &Check, side: &Path) -> Result<Observation> {
    // Scenarios change their working directory.
    let side = fs::canonicalize(side).with_context(|| format!("{}", side.display()))?;
    let dir = side.join(format!("check-{}-{}", check.name, std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
    let (send, done) = channel();
    let (run, root) = (check.run, dir.clone());
    let thread = std::thread::spawn(move || {
        let scene = Scene::new(root);
        let ready = private_directory_and_umask().context("unshare");
        let end = ready.and_then(|()| run(&scene));
        let end = end.map_err(|error| format!("{error:#}"));
        // The mount stays busy while a thread that has ended is being cleared away.
        let _left = rustix::process::chdir("/");
        // Nobody waits any more when the deadline has passed.
        let _late = send.send(Observation {
            entries: scene.into_entries(),
            end,
        });
    });
    let observation = done
        .recv_timeout(DEADLINE)
        .map_err(|error| anyhow!("check {}: no end in {DEADLINE:?}: {error}", check.name))?;
    thread
        .join()
        .map_err(|_| anyhow!("check {} panicked", check.name))?;
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    Ok(observation)
}

fn first_difference(mount: &Observation, plain: &Observation) -> Option<String> {
    for (found, expected) in mount.entries.iter().zip(&plain.entries) {
        let difference = found.difference(expected);
        if difference.is_some() {
            return difference;
        }
    }
    if mount.end != plain.end {
        return Some(format!(
            "on the mount the scenario ended with {:?} after {} observations, on the plain \
             directory with {:?}",
            mount.end,
            mount.entries.len(),
            plain.end
        ));
    }
    if let Err(error) = &plain.end {
        return Some(format!("the plain directory cannot do this: {error}"));
    }
    let equal = mount.entries.len() == plain.entries.len();
    (!equal).then(|| String::from("the sides made different numbers of observations"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_met_as_it_is_written_or_the_check_fails() {
        let kernel = Kernel::running().expect("it has a release");
        let limits: Vec<_> = Client::Writeback.limits(kernel).collect();
        let limit = limits.first().expect("there is one");
        let judged_on = |on_ext4, name, difference: Option<&str>| {
            let verdict = judge(name, difference.map(str::to_owned), &limits, on_ext4);
            (verdict.failure.is_some(), verdict.limit)
        };
        let judged = |name, difference| judged_on(true, name, difference);
        let as_written = format!("before {} behind", limit.message);
        assert_eq!(
            judged(limit.check, Some(&as_written)),
            (false, Some(limit.reason))
        );
        assert_eq!(judged(limit.check, Some("something else")), (true, None));
        assert_eq!(judged(limit.check, None), (true, None));
        assert!(limit.is_of_ext4);
        assert_eq!(judged_on(false, limit.check, None), (false, None));
        assert_eq!(
            judged_on(false, limit.check, Some("something else")),
            (true, None)
        );
        assert_eq!(judged("mmap-private", Some(&as_written)), (true, None));
        assert_eq!(judged("mmap-private", None), (false, None));
    }
}
