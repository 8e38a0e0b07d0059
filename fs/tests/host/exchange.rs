//! A directory that is exchanged for a symbolic link while others walk through it: the
//! server must not follow the link, or files outside its source are read and changed.
//!
//! The link is relative, and the mount is deeper in the tree than the source. So the
//! clients' kernel, which may follow it, gets to a decoy; only who follows it in the
//! source gets outside. Hence the clients may use plain paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, renameat_with};

use crate::harness::{Sandbox, Server};

/// How long the attack lasts at least. It goes on until its controls have been met, for
/// that depends on who else uses the machine.
const ATTACK: Duration = Duration::from_secs(2);

/// When they must have been met.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often who opens by path must have been led outside.
const LED_OUTSIDE: u64 = 20;

const CLIENTS: usize = 3;

/// Everything about a tree that reading does not change: attributes with the times of
/// modification and change, contents and targets of links.
pub(crate) fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut shown = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            Vec::new()
        } else if stat.is_file() {
            fs::read(&path).unwrap()
        } else if stat.is_symlink() {
            fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else {
            Vec::new()
        };
        let attributes = [
            stat.ino(),
            stat.mode().into(),
            stat.nlink(),
            stat.uid().into(),
        ];
        let times = [
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime(),
            stat.ctime_nsec(),
        ];
        shown.insert(
            path,
            format!("{attributes:?} {} {times:?} {content:?}", stat.gid()),
        );
    }
    shown
}

/// Fills a directory with files that say where they are.
fn plant(dir: &Path, content: &str) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    for name in ["secret", "victim", "sub/secret"] {
        fs::write(dir.join(name), content).unwrap();
    }
    fs::write(dir.join(format!("only-{content}")), content).unwrap();
}

/// What a client of `mount` saw, and which of its changes were answered with success.
#[derive(Default)]
struct Round {
    seen: Vec<Vec<u8>>,
    changes: Vec<(&'static str, bool)>,
}

impl Round {
    fn see(&mut self, read: io::Result<Vec<u8>>) {
        self.seen.extend(read);
    }

    fn change<T>(&mut self, what: &'static str, done: io::Result<T>) {
        self.changes.push((what, done.is_ok()));
    }
}

/// Reads and changes what is below `d`, by every kind of call.
fn client(mount: &Path, me: usize) -> Round {
    let mut round = Round::default();
    let d = mount.join("d");
    read(&d, &mut round);
    change_attributes(&d, me, &mut round);
    change_names(mount, &d, me, &mut round);
    round
}

fn read(d: &Path, round: &mut Round) {
    round.see(fs::read(d.join("secret")));
    round.see(fs::read(d.join("sub/secret")));
    // Below a directory that is held, the server has no name of it to walk.
    if let Ok(held) = rustix::fs::open(d, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
        let open = rustix::fs::openat(&held, "secret", OFlags::RDONLY, Mode::empty());
        let mut bytes = Vec::new();
        let read = |fd| File::from(fd).read_to_end(&mut bytes);
        round.change("openat", open.map_err(Into::into).and_then(read));
        round.see(Ok(bytes));
    }
    let listed = fs::read_dir(d).map(|names| {
        let names = names.filter_map(|name| Some(name.ok()?.file_name().into_encoded_bytes()));
        names.collect::<Vec<_>>()
    });
    round.seen.extend(listed.unwrap_or_default());
}

fn change_attributes(d: &Path, me: usize, round: &mut Round) {
    let victim = d.join("victim");
    round.change("write", fs::write(&victim, "changed"));
    let mode = fs::Permissions::from_mode(0o600 + me as u32);
    round.change("chmod", fs::set_permissions(&victim, mode));
    let writer = File::options().write(true).open(&victim);
    round.change("truncate", writer.and_then(|file| file.set_len(1)));
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    let touched = File::open(&victim).and_then(|file| file.set_times(times));
    round.change("utimens", touched);
    let owner = std::os::unix::fs::chown(&victim, Some(me as u32), None);
    round.change("chown", owner);
    let flags = rustix::fs::XattrFlags::empty();
    let attribute = rustix::fs::setxattr(&victim, "user.attacked", b"yes", flags);
    round.change("setxattr", attribute.map_err(Into::into));
}

fn change_names(mount: &Path, d: &Path, me: usize, round: &mut Round) {
    let new = d.join(format!("new-{me}"));
    let [bait, stolen] = ["bait", "stolen"].map(|name| mount.join(format!("{name}-{me}")));
    round.change("create", fs::write(&new, "new"));
    round.change("rename", fs::rename(&new, d.join("renamed")));
    round.change("unlink", fs::remove_file(d.join("renamed")));
    round.change("rename into", fs::rename(&bait, d.join("bait")));
    round.change("rename out of", fs::rename(d.join("bait"), &bait));
    fs::write(&bait, "bait").unwrap();
    round.change("link", fs::hard_link(d.join("secret"), &stolen));
    round.see(fs::read(&stolen));
    round.change("unlink above", fs::remove_file(&stolen));
    round.change("link into", fs::hard_link(&bait, d.join("linked")));
    round.change("unlink linked", fs::remove_file(d.join("linked")));
    round.change(
        "mkdir",
        fs::DirBuilder::new().mode(0o700).create(d.join("made")),
    );
    round.change("rmdir", fs::remove_dir(d.join("made")));
    round.change("symlink", symlink("target", d.join("link")));
    round.change("unlink link", fs::remove_file(d.join("link")));
    let fifo = rustix::fs::mknodat(
        CWD,
        d.join("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::RUSR,
        0,
    );
    round.change("mknod", fifo.map_err(Into::into));
    let unlinked = rustix::fs::unlinkat(CWD, d.join("fifo"), AtFlags::empty());
    round.change("unlink fifo", unlinked.map_err(Into::into));
    let unnamed = rustix::fs::open(d, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    round.change("tmpfile", unnamed.map_err(Into::into));
}

/// What a server that keeps paths does: it looks at the name and then opens below it.
fn read_by_path(source: &Path) -> Option<Vec<u8>> {
    let dir = source.join("d");
    fs::symlink_metadata(&dir).ok()?.is_dir().then_some(())?;
    fs::read(dir.join("secret")).ok()
}

/// What all clients saw and did together.
#[derive(Default)]
struct Tally {
    seen: BTreeSet<Vec<u8>>,
    /// How often each kind of change was refused, and done.
    changes: BTreeMap<&'static str, [u64; 2]>,
}

impl Tally {
    fn add(&mut self, round: Round) {
        self.seen.extend(round.seen);
        for (what, done) in round.changes {
            self.changes.entry(what).or_default()[usize::from(done)] += 1;
        }
    }

    /// What has not been seen or done of all that must be, or the attack was none: both
    /// what is inside and where the link leads the clients, and each kind of change.
    fn missing(&self) -> Vec<&str> {
        let expected = ["inside", "decoy", "only-inside", "only-decoy"];
        let unseen = expected
            .iter()
            .filter(|name| !self.seen.contains(name.as_bytes()));
        let undone = self.changes.iter().filter(|(_, [_, done])| *done == 0);
        unseen
            .chain(undone.map(|(what, _)| what))
            .copied()
            .collect()
    }
}

/// The attack while it goes on.
struct Attack {
    source: PathBuf,
    mount: PathBuf,
    start: Instant,
    tally: Mutex<Tally>,
    exchanges: AtomicU64,
    led_outside: AtomicU64,
    complete: AtomicBool,
}

impl Attack {
    fn goes_on(&self) -> bool {
        let lasts = self.start.elapsed();
        lasts < ATTACK || lasts < DEADLINE && !self.complete.load(Ordering::Relaxed)
    }

    fn exchange(&self, dir: &Path) {
        while self.goes_on() {
            let [from, to] = ["d", "link"].map(|name| dir.join(name));
            renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE).unwrap();
            self.exchanges.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read_by_path(&self) {
        while self.goes_on() {
            let is_outside = read_by_path(&self.source).as_deref() == Some(b"outside");
            self.led_outside
                .fetch_add(is_outside.into(), Ordering::Relaxed);
        }
    }

    fn use_as_client(&self, me: usize) {
        while self.goes_on() {
            let round = client(&self.mount, me);
            let mut tally = self.tally.lock().unwrap();
            tally.add(round);
            let led_outside = self.led_outside.load(Ordering::Relaxed);
            let complete = tally.missing().is_empty() && led_outside >= LED_OUTSIDE;
            self.complete.store(complete, Ordering::Relaxed);
        }
    }

    /// Exchanges the names through the mount and, if asked, behind it, while clients use
    /// the mount and somebody opens by path.
    fn run(&self, behind: bool) {
        thread::scope(|scope| {
            scope.spawn(|| self.exchange(&self.mount));
            if behind {
                scope.spawn(|| self.exchange(&self.source));
            }
            scope.spawn(|| self.read_by_path());
            (0..CLIENTS).for_each(|me| drop(scope.spawn(move || self.use_as_client(me))));
        });
    }
}

fn attack(arguments: &[&str], behind: bool) {
    let sandbox = Sandbox::new();
    let (source, outside) = (sandbox.source(), sandbox.path("outside"));
    let mount = sandbox.path("deep/mount");
    fs::create_dir_all(&mount).unwrap();
    plant(&outside, "outside");
    plant(&sandbox.path("deep/outside"), "decoy");
    plant(&source.join("d"), "inside");
    symlink("../outside", source.join("link")).unwrap();
    let before = snapshot(&outside);
    let server = Server::start_quietly(&source, &mount, arguments);

    let attack = Attack {
        source,
        mount,
        start: Instant::now(),
        tally: Mutex::default(),
        exchanges: AtomicU64::new(0),
        led_outside: AtomicU64::new(0),
        complete: AtomicBool::new(false),
    };
    attack.run(behind);
    assert_eq!(snapshot(&outside), before, "something outside was changed");
    let tally = attack.tally.into_inner().unwrap();
    for forbidden in ["outside", "only-outside"] {
        assert!(
            !tally.seen.contains(forbidden.as_bytes()),
            "{forbidden} was seen"
        );
    }

    let missing = tally.missing();
    assert!(missing.is_empty(), "never seen or done: {missing:?}");
    let (exchanges, led_outside) = (
        attack.exchanges.into_inner(),
        attack.led_outside.into_inner(),
    );
    println!(
        "{exchanges} exchanges in {:?}; a path led outside {led_outside} times",
        attack.start.elapsed()
    );
    assert!(
        led_outside >= LED_OUTSIDE,
        "the race was not run: {led_outside}"
    );
    server.unmount();
    // What follows the link is found out; one of the two names is it.
    for name in ["d", "link"] {
        fs::write(attack.source.join(name).join("victim"), "changed").unwrap();
    }
    assert_ne!(snapshot(&outside), before);
}

#[test]
fn a_directory_exchanged_for_a_link_leads_nowhere() {
    attack(&[], true);
}

#[test]
fn nor_does_it_when_nothing_is_cached() {
    attack(&["--cache", "none", "--io", "direct"], true);
}

#[test]
fn nor_does_it_when_only_clients_exchange_it() {
    attack(&[], false);
}
