//! The logs of others against our own recording of the same disk.
//!
//! The kernel's dm-log-writes runs in a guest over one half of a disk and logs
//! to the other, so that one recording of ours holds both what the kernel
//! logged and what it logged about.

use std::{collections::BTreeSet, fs, process::ExitCode, time::Duration};

use anyhow::{Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use plugpull_disk::{
    ByteCount, CutPoint, Cutter, Keep, View,
    interop::{Count, import},
};
use plugpull_lab::session::Session;
use plugpull_protocol::{Exited, Reply, Request};
use plugpull_tests::{DISK, Stage};

fn main() -> ExitCode {
    let tests = [Trial::test("dm_log_writes", || {
        Ok(dm_log_writes().map_err(|error| format!("{error:#}"))?)
    })];
    libtest_mimic::run(&Arguments::from_args(), tests.into()).exit_code()
}

const DEADLINE: Duration = Duration::from_secs(60);

/// The logged half, in bytes; the log has the other.
const LOGGED: u64 = DISK.size.0 / 2;

/// So many times: write, sync, mark, write without a sync.
const STEPS: usize = 6;

/// Lays dm-log-writes over the disk `data`.
const SET_UP: &str = r#"
set -e
disk=/dev/$(basename "$(dirname "$(grep -lx data /sys/block/*/serial)")")
half=$(($(blockdev --getsz "$disk") / 2))
table() { dmsetup create "$1" --noudevsync --noudevrules --table "$2"; }
number() { dmsetup info --columns --noheadings --separator : -o major,minor "$1"; }
table below "0 $half linear $disk 0"
table log "0 $half linear $disk $half"
table logged "0 $half log-writes $(number below) $(number log)"
"#;

/// Direct writes, so that no cache decides when they go: some, then fsync and a
/// mark, then some that nothing syncs. A zeroed range and one write through.
const STEP: &str = r#"
import fcntl, glob, mmap, os, random, struct, subprocess, sys
step = int(sys.argv[1])
chance = random.Random(step)
size = int(sys.argv[2])
name, = [f for f in glob.glob("/sys/block/*/dm/name") if open(f).read() == "logged\n"]
node = "/dev/" + name.split("/")[3]
disk = os.open(node, os.O_RDWR | os.O_DIRECT)
through = os.open(node, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
def write(to):
    blocks = chance.randint(1, 16)
    at = chance.randrange(size // 4096 - blocks) * 4096
    page = mmap.mmap(-1, blocks * 4096)
    page.write(chance.randbytes(blocks * 4096))
    assert os.pwrite(to, page, at) == len(page)
for _ in range(8):
    write(disk)
write(through)
BLKDISCARD = 0x1277
fcntl.ioctl(disk, BLKDISCARD, struct.pack("QQ", 65536 * step, 32768))
for _ in range(4):
    write(disk)
os.fsync(disk)
subprocess.run(["dmsetup", "message", "logged", "0", "mark", f"step-{step}"], check=True)
"#;

/// More writes on top, which no flush follows.
const LOOSE: &str = r#"
import glob, mmap, os
name, = [f for f in glob.glob("/sys/block/*/dm/name") if open(f).read() == "logged\n"]
disk = os.open("/dev/" + name.split("/")[3], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
page.write(b"loose" * 819 + b"!")
for at in range(8):
    os.pwrite(disk, page, at * 4096)
"#;

/// At each mark the log of the kernel, imported, holds the disk that ours
/// holds there; and what no flush followed is in ours alone.
fn dm_log_writes() -> Result<()> {
    let stage = Stage::new("interop::dm-log-writes")?;
    let session = stage.session_on(View::zeros(ByteCount(DISK.size.0))?, true)?;
    run(&session, &["/bin/sh", "-c", SET_UP])?;
    let mut ours_at = Vec::new();
    for step in 0..STEPS {
        let (step, size) = (step.to_string(), LOGGED.to_string());
        run(&session, &["/usr/bin/python3", "-c", STEP, &step, &size])?;
        ours_at.push(CutPoint(session.disk().mark(format!("step-{step}"))?));
    }
    // The target's thread writes the log behind the back of fsync(2) and dmsetup(8).
    let last_mark = format!("step-{}", STEPS - 1);
    let disk = session.disk().clone();
    session
        .guest()
        .wait_until("the last mark in the log", session.scale(DEADLINE), || {
            other_half(&disk.view()).is_ok_and(|log| has(&log, last_mark.as_bytes()))
        })?;
    run(&session, &["/usr/bin/python3", "-c", LOOSE])?;
    let disk = session.pull_the_plug()?;
    let end = disk.view();
    let ours = disk.finish()?;

    let log = stage.log().with_extension("log-writes");
    fs::write(&log, other_half(&end)?)?;
    let size = ByteCount(LOGGED);
    let out = stage.log().with_extension("imported.disklog");
    let theirs = import(&log, size, Count::Scanned, &out)?;
    let theirs_at: Vec<CutPoint> = theirs
        .marks()
        .filter(|mark| mark.text.starts_with(b"step-"))
        .map(|mark| CutPoint(mark.seq))
        .collect();
    ensure!(
        theirs_at.len() == STEPS,
        "{} of {STEPS} marks are in the kernel's log",
        theirs_at.len()
    );
    let zeros = (View::zeros(ByteCount(DISK.size.0))?, View::zeros(size)?);
    let (mut our, mut their) = (
        Cutter::new(&zeros.0, &ours)?,
        Cutter::new(&zeros.1, &theirs)?,
    );
    let mut contents = BTreeSet::new();
    for (step, (ours_at, theirs_at)) in ours_at.iter().zip(&theirs_at).enumerate() {
        let ours = half(&our.at(*ours_at)?.crash_state(&Keep::DurableOnly)?.view)?;
        let theirs = half(&their.at(*theirs_at)?.crash_state(&Keep::DurableOnly)?.view)?;
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        ensure!(
            differs.is_none(),
            "at step-{step} the disks differ at byte {differs:?}"
        );
        contents.insert(ours);
    }
    ensure!(contents.len() == STEPS, "each step changes the disk");
    let last = theirs.last_seq();
    let theirs = half(
        &their
            .at(CutPoint(last))?
            .crash_state(&Keep::Everything)?
            .view,
    )?;
    let at_end = our.at(CutPoint(ours.last_seq()))?;
    let [kept, lost] = [Keep::Everything, Keep::DurableOnly].map(|keep| {
        at_end
            .crash_state(&keep)
            .and_then(|state| half(&state.view))
    });
    ensure!(
        theirs == lost?,
        "what no flush followed is in the kernel's log"
    );
    ensure!(kept?.starts_with(b"loose"), "and not in ours");
    Ok(())
}

/// Run a program in the guest; it has to end well.
fn run(session: &Session<'_>, argv: &[&str]) -> Result<()> {
    let request = Request::Exec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: vec![(
            String::from("PATH"),
            String::from("/usr/sbin:/usr/bin:/sbin:/bin"),
        )],
        uid: None,
        timeout_ms: session.timeout_ms(DEADLINE),
    };
    match session
        .guest()
        .request(request, session.scale(2 * DEADLINE))?
    {
        Reply::Exited(Exited {
            code, ref stderr, ..
        }) => ensure!(code == 0, "{} ended with {code}: {stderr}", argv[0]),
        other => bail!("the guest answered a command with {other:?}"),
    }
    Ok(())
}

/// The half with the log.
fn other_half(view: &View) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(DISK.size.0 - LOGGED)?];
    view.read_at(LOGGED, &mut bytes)?;
    Ok(bytes)
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// The logged half.
fn half(view: &View) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(LOGGED)?];
    view.read_at(0, &mut bytes)?;
    Ok(bytes)
}
