//! What a server remembers of a tree that somebody has walked.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Place,
    load::{self, Job},
    results::Walk,
    servers::{Role, Server},
};
use crate::progress::Event;

const NAMES_PER_DIR: u64 = 1000;
const TREE: &str = "tree";
/// A thousand names a second is far below anybody's rate.
const SLOWEST: u64 = 1000;

/// Every server but native walks the same tree; and why some did not.
///
/// # Errors
/// When the tree cannot be made.
pub(super) fn all(place: &Place<'_>, servers: &[Server]) -> Result<(Vec<Walk>, Vec<String>)> {
    let names = place.order.walk;
    let tree = place.lower.path.join(TREE);
    place.order.progress.tell(&Event::Notice {
        text: format!("walking {names} names"),
    });
    make(&tree, names)?;
    place.lower.settle()?;
    let (mut walks, mut errors) = (Vec::new(), Vec::new());
    for server in servers.iter().filter(|server| server.role != Role::Native) {
        match one(place, server, names) {
            Ok(walk) => walks.push(walk),
            Err(error) => errors.push(format!("walk: {}: {error:#}", server.name)),
        }
    }
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    Ok((walks, errors))
}

fn one(place: &Place<'_>, server: &Server, names: u64) -> Result<Walk> {
    let mut serving = place.start(server)?;
    let before = serving.usage()?;
    let tree = serving.view.join(TREE);
    let began = Instant::now();
    let job: Job = Box::new(move |_stop| walk(&tree));
    let deadline = Duration::from_secs(60 + names / SLOWEST);
    let done = match load::run(vec![job], None, deadline) {
        Ok(done) => done,
        Err(error) => {
            serving.kill()?;
            return Err(error);
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let after = serving.usage()?;
    serving.stop()?;
    anyhow::ensure!(done.ops == names, "{} of {names} names found", done.ops);
    Ok(Walk {
        server: server.name.clone(),
        role: server.role,
        names,
        seconds,
        rss_kib: [before.rss_kib, after.rss_kib],
        descriptors: after.descriptors,
    })
}

fn make(tree: &Path, names: u64) -> Result<()> {
    for n in 0..names {
        let dir = tree.join(format!("dir-{:05}", n / NAMES_PER_DIR));
        if n % NAMES_PER_DIR == 0 {
            fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let path = dir.join(format!("name-{n:07}"));
        File::create(&path).with_context(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

/// Looks at every name, as `find -size` does; counts those that are no directories.
fn walk(tree: &Path) -> Result<u64> {
    let mut files = 0;
    let mut todo: Vec<PathBuf> = vec![tree.to_owned()];
    while let Some(dir) = todo.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let metadata = entry
                .metadata()
                .with_context(|| entry.path().display().to_string())?;
            match metadata.is_dir() {
                true => todo.push(entry.path()),
                false => files += 1,
            }
        }
    }
    Ok(files)
}
