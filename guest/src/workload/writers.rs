//! Many writers at once, each with files of its own: whoever mixes up
//! handles shows another writer's bytes, or none.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::Context as _;
use plugpull_protocol::Observation;
use plugpull_protocol::workload::WritersSeen;
use plugpull_protocol::workload::plan::{RECORD, Writers};

/// How many findings are described.
const DESCRIBED: usize = 20;

/// Writers need little stack, and there are hundreds of them.
const STACK_BYTES: usize = 256 << 10;

/// Bytes per write call: not aligned to pages, several calls for most files.
const WRITE_BYTES: usize = 1_500;

/// Create, write, close and verify all files, a round at a time.
pub(super) fn write(dir: &Path, files: Writers) -> anyhow::Result<Observation> {
    let seen = Mutex::new(WritersSeen::default());
    for round in 0..files.rounds {
        let at = dir.join(format!("round-{round}"));
        std::fs::create_dir_all(&at).with_context(|| format!("make {}", at.display()))?;
        let gate = Gate::default();
        std::thread::scope(|scope| {
            for writer in 0..files.writers {
                let (seen, gate) = (&seen, &gate);
                let started = std::thread::Builder::new()
                    .stack_size(STACK_BYTES)
                    .spawn_scoped(scope, move || {
                        if gate.passed() {
                            one_round(dir, files, writer, round, seen);
                        }
                    });
                if let Err(e) = started {
                    gate.open(false);
                    return Err(e).with_context(|| format!("start writer {writer}"));
                }
            }
            gate.open(true);
            Ok(())
        })?;
    }
    Ok(Observation::Writers(into_inner(seen)))
}

/// Lets all through at once, or sends all home.
#[derive(Default)]
struct Gate {
    state: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Gate {
    fn open(&self, go: bool) {
        *lock(&self.state) = Some(go);
        self.changed.notify_all();
    }

    /// Wait for [`Gate::open`], which the same call always reaches.
    fn passed(&self) -> bool {
        let state = self
            .changed
            .wait_while(lock(&self.state), |state| state.is_none());
        *state.unwrap_or_else(PoisonError::into_inner) == Some(true)
    }
}

fn one_round(dir: &Path, files: Writers, writer: u32, round: u32, seen: &Mutex<WritersSeen>) {
    for file in 0..files.files {
        let path = files.path(writer, round, file);
        let content = files.content(writer, round, file);
        if let Err(e) = create(&dir.join(&path), &content) {
            note(seen, |s| s.errors += 1, || format!("{path}: {e:#}"));
        }
    }
    for file in 0..files.files {
        verify_one(dir, files, (writer, round, file), seen);
    }
}

/// Create a file and write it. A filesystem may say only at the close what it
/// could not write.
fn create(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).open(path);
    let mut file = file.context("create")?;
    for chunk in content.chunks(WRITE_BYTES) {
        file.write_all(chunk).context("write")?;
    }
    close::close(file).context("close")
}

/// Verify all files, and that there are no others.
pub(super) fn verify(dir: &Path, files: Writers) -> anyhow::Result<Observation> {
    let seen = Mutex::new(WritersSeen::default());
    let mut present = 0;
    for round in 0..files.rounds {
        let at = dir.join(format!("round-{round}"));
        let entries = at.read_dir();
        let entries = entries.with_context(|| format!("list {}", at.display()))?;
        let mut names = std::collections::BTreeSet::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", at.display()))?;
            names.insert(entry.file_name());
        }
        for writer in 0..files.writers {
            for file in 0..files.files {
                let path = files.path(writer, round, file);
                let name = path.rsplit('/').next().unwrap_or(&path);
                if names.remove(std::ffi::OsStr::new(name)) {
                    present += 1;
                }
                verify_one(dir, files, (writer, round, file), &seen);
            }
        }
        for name in names {
            let told = || format!("{} is nobody's", at.join(&name).display());
            note(&seen, |s| s.strangers += 1, told);
        }
    }
    let seen = into_inner(seen);
    // A name that can be opened and is not listed is an error as well.
    anyhow::ensure!(
        present >= seen.files,
        "{} files could be read, and only {present} are listed",
        seen.files
    );
    Ok(Observation::Writers(seen))
}

fn verify_one(dir: &Path, files: Writers, of: (u32, u32, u32), seen: &Mutex<WritersSeen>) {
    let (writer, round, file) = of;
    let path = files.path(writer, round, file);
    let expected = files.content(writer, round, file);
    let mut found = Vec::with_capacity(expected.len() + 1);
    let read = File::open(dir.join(&path)).and_then(|mut f| f.read_to_end(&mut found));
    if let Err(e) = read {
        note(seen, |s| s.errors += 1, || format!("{path}: read: {e}"));
    } else if found == expected {
        let mut seen = lock(seen);
        seen.files += 1;
        seen.bytes += expected.len() as u64;
    } else {
        let told = || format!("{path}: {}", difference(&expected, &found));
        note(seen, |s| s.mismatches += 1, told);
    }
}

/// Where two contents part, with the whole record of each there.
fn difference(expected: &[u8], found: &[u8]) -> String {
    let same = expected.iter().zip(found).take_while(|(e, f)| e == f);
    let at = same.count();
    let record = |of: &[u8]| {
        let from = (at / RECORD * RECORD).min(of.len());
        let bytes = &of[from..of.len().min(from + RECORD)];
        bytes.escape_ascii().to_string()
    };
    format!(
        "{} bytes instead of {}; at {at} \"{}\" instead of \"{}\"",
        found.len(),
        expected.len(),
        record(found),
        record(expected)
    )
}

fn note(
    seen: &Mutex<WritersSeen>,
    count: impl FnOnce(&mut WritersSeen),
    told: impl Fn() -> String,
) {
    let mut seen = lock(seen);
    count(&mut seen);
    if seen.first.len() < DESCRIBED {
        seen.first.push(told());
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn into_inner<T>(of: Mutex<T>) -> T {
    of.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A close that can be seen to fail, which neither std nor rustix has.
#[expect(unsafe_code, reason = "only libc's close returns the error")]
mod close {
    use std::fs::File;
    use std::io;
    use std::os::fd::IntoRawFd;

    /// Close a file and say what the filesystem said.
    pub(super) fn close(file: File) -> io::Result<()> {
        // SAFETY: into_raw_fd gave up ownership, so this is the descriptor's
        // only close; it is closed even when an error comes back.
        match unsafe { libc::close(file.into_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: Writers = Writers {
        writers: 40,
        rounds: 2,
        files: 3,
        max_bytes: 9_000,
        seed: 11,
    };

    fn seen(observed: anyhow::Result<Observation>) -> WritersSeen {
        match observed.expect("carried out") {
            Observation::Writers(seen) => seen,
            other => panic!("{other:?}"),
        }
    }

    /// The first file of a writer that is longer than two records.
    fn long_file(writer: u32) -> (String, Vec<u8>) {
        let all = (0..FILES.rounds).flat_map(|r| (0..FILES.files).map(move |f| (r, f)));
        all.map(|(r, f)| (FILES.path(writer, r, f), FILES.content(writer, r, f)))
            .find(|(_, content)| content.len() > 2 * RECORD)
            .expect("a long file")
    }

    #[test]
    fn all_files_are_written_and_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let written = seen(write(dir.path(), FILES));
        assert_eq!((written.files, written.errors), (FILES.count(), 0));
        assert!(written.first.is_empty(), "{written:?}");
        assert_eq!(seen(verify(dir.path(), FILES)), written);
    }

    #[test]
    fn damage_of_every_kind_is_seen_and_names_the_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = seen(write(dir.path(), FILES));
        let (mixed_up, mut content) = long_file(1);
        let (_, foreign) = long_file(2);
        content[RECORD..2 * RECORD].copy_from_slice(&foreign[RECORD..2 * RECORD]);
        std::fs::write(dir.path().join(&mixed_up), content).expect("written");
        let (emptied, _) = long_file(3);
        std::fs::write(dir.path().join(&emptied), b"").expect("written");
        let (removed, _) = long_file(4);
        std::fs::remove_file(dir.path().join(&removed)).expect("removed");
        std::fs::write(dir.path().join("round-0/extra"), b"").expect("written");

        let found = seen(verify(dir.path(), FILES));
        let counts = (found.mismatches, found.errors, found.strangers);
        assert_eq!(counts, (2, 1, 1));
        assert_eq!(found.files, whole.files - 3);
        let said = found.first.join("\n");
        for needed in ["W0002R", &mixed_up, &emptied, &removed, "0 bytes instead"] {
            assert!(said.contains(needed), "{needed} in {said}");
        }
    }

    #[test]
    fn writing_over_what_is_there_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        seen(write(dir.path(), FILES));
        let again = seen(write(dir.path(), FILES));
        assert_eq!(again.errors, FILES.count());
        assert!(again.first[0].contains("create"), "{}", again.first[0]);
    }
}
