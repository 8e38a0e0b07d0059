//! One-page writes, each with an fsync and a promise: the smallest program
//! that can lose something.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use plugpull_protocol::workload::Page;
use plugpull_protocol::workload::plan::{self, PAGE};
use plugpull_protocol::{Observation, Promise};

use super::Promises;

fn file(dir: &Path) -> PathBuf {
    dir.join("pages")
}

/// Write `writes` pages, the i-th to page `i % pages`; stop at the first
/// error, because nothing is known of the file after it.
pub(super) fn write(
    dir: &Path,
    writes: u32,
    pages: u32,
    seed: u64,
    promises: &dyn Promises,
) -> anyhow::Result<Observation> {
    anyhow::ensure!(pages > 0, "a file of no pages");
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut acked = 0;
    let failed = |acked: u32, e: std::io::Error| {
        Ok(Observation::PagesWritten {
            acked,
            error: Some(format!("after {acked} writes: {e}")),
        })
    };
    let file = match create(dir) {
        Ok(file) => file,
        Err(e) => return failed(acked, e),
    };
    for write in 0..writes {
        let page = write % pages;
        let key = plan::page_key(page);
        promises.record(Promise::Begin {
            conn: 0,
            key: key.clone(),
            value: Some(write.to_string()),
        })?;
        let at = u64::from(page) * PAGE as u64;
        let done = file.write_all_at(&plan::page(seed, write), at);
        if let Err(e) = done.and_then(|()| file.sync_all()) {
            return failed(acked, e);
        }
        acked += 1;
        promises.record(Promise::Ack { conn: 0, key })?;
    }
    Ok(Observation::PagesWritten { acked, error: None })
}

/// A new file whose name is durable before anything is promised of it, and
/// its directory's name too.
fn create(dir: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).open(file(dir))?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    if let Some(parent) = dir.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(file)
}

/// Say what each page holds.
pub(super) fn check(dir: &Path, writes: u32, pages: u32, seed: u64) -> anyhow::Result<Observation> {
    anyhow::ensure!(pages > 0, "a file of no pages");
    let path = file(dir);
    let file = match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Ok(Observation::Pages {
                size: None,
                pages: vec![Page::Absent; pages as usize],
            });
        }
        opened => opened.with_context(|| format!("open {}", path.display()))?,
    };
    let size = file.metadata().context("look at the pages")?.len();
    let pages = (0..pages).map(|page| {
        let mut found = vec![0; PAGE];
        match file.read_exact_at(&mut found, u64::from(page) * PAGE as u64) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Page::Absent,
            Err(_) => Page::Unreadable,
            Ok(()) if found.iter().all(|byte| *byte == 0) => Page::Zero,
            Ok(()) => (page..writes)
                .step_by(pages as usize)
                .filter(|write| found.starts_with(&plan::page_begins(seed, *write)))
                .find(|write| plan::page(seed, *write) == found)
                .map_or(Page::Other, Page::Write),
        }
    });
    Ok(Observation::Pages {
        size: Some(size),
        pages: pages.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Heard(Mutex<Vec<Promise>>);

    impl Promises for Heard {
        fn record(&self, event: Promise) -> anyhow::Result<()> {
            self.0.lock().expect("no panic").push(event);
            Ok(())
        }
    }

    #[test]
    fn pages_are_promised_and_damage_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("new");
        let heard = Heard::default();
        let written = write(&dir, 6, 4, 9, &heard).expect("carried out");
        let all = Observation::PagesWritten {
            acked: 6,
            error: None,
        };
        assert_eq!(written, all);
        let heard = heard.0.into_inner().expect("no panic");
        assert_eq!(heard.len(), 12);
        let begun = Promise::Begin {
            conn: 0,
            key: "page/1".into(),
            value: Some("5".into()),
        };
        assert_eq!(heard[10], begun);

        let file = OpenOptions::new().write(true).open(file(&dir));
        let file = file.expect("opened");
        file.write_all_at(&[0; PAGE], PAGE as u64).expect("written");
        file.write_all_at(b"torn", 2 * PAGE as u64)
            .expect("written");
        file.set_len(3 * PAGE as u64 + 100).expect("cut");
        let seen = check(&dir, 6, 4, 9).expect("carried out");
        let pages = vec![Page::Write(4), Page::Zero, Page::Other, Page::Absent];
        let size = Some(3 * PAGE as u64 + 100);
        assert_eq!(seen, Observation::Pages { size, pages });

        let nowhere = check(&dir.join("nowhere"), 6, 2, 9).expect("carried out");
        let pages = vec![Page::Absent; 2];
        assert_eq!(nowhere, Observation::Pages { size: None, pages });
    }
}
