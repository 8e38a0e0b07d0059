//! Locks: flock(2), and byte ranges of processes and of open file descriptions.

use std::fs;

use anyhow::Result;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Line;
use super::scene::Scene;
use crate::sys::lock;

pub(super) const CHECKS: &[Line] = &[
    (
        "flock",
        "flock(2) locks belong to the open file description and end with it.",
        whole_files,
    ),
    (
        "ofd-locks",
        "Byte ranges locked by one open file description keep out another.",
        descriptions,
    ),
    (
        "posix-locks",
        "Byte ranges locked by a process end when it closes any descriptor of the file.",
        processes,
    ),
    (
        "locks-across-names",
        "A lock taken by one name of a file counts for its other names.",
        names,
    ),
];

fn whole_files(scene: &Scene) -> Result<()> {
    let first = scene.file("f", b"")?;
    let second = scene.open("f", 0)?;
    let (shared, exclusive) = (
        FlockOperation::NonBlockingLockShared,
        FlockOperation::NonBlockingLockExclusive,
    );
    let (done, busy) = (Ok::<(), Errno>(()), Err::<(), _>(Errno::AGAIN));
    scene.expect("shared", flock(&first, shared), done);
    scene.expect("shared by another", flock(&second, shared), done);
    scene.expect("exclusive", flock(&first, exclusive), busy);
    scene.expect(
        "unlock",
        flock(&second, FlockOperation::NonBlockingUnlock),
        done,
    );
    scene.expect("exclusive now", flock(&first, exclusive), done);
    let copy = first.try_clone()?;
    drop(first);
    scene.expect("held by a duplicate", flock(&second, shared), busy);
    drop(copy);
    scene.expect("ended by the last close", flock(&second, exclusive), done);
    Ok(())
}

fn descriptions(scene: &Scene) -> Result<()> {
    let first = scene.file("f", b"0123456789")?;
    let second = scene.open("f", 0)?;
    let set = |file: &fs::File, kind, start, length| {
        lock(file, libc::F_OFD_SETLK, kind, start, length).map(drop)
    };
    let (done, busy) = (Ok::<(), Errno>(()), Err::<(), _>(Errno::AGAIN));
    scene.expect("write lock", set(&first, libc::F_WRLCK, 2, 4), done);
    scene.expect("overlapping", set(&second, libc::F_RDLCK, 5, 1), busy);
    scene.expect("beside it", set(&second, libc::F_WRLCK, 6, 0), done);
    let test = lock(&second, libc::F_OFD_GETLK, libc::F_RDLCK, 0, 0);
    scene.expect(
        "what is in the way",
        test,
        Ok::<_, Errno>((libc::F_WRLCK, 2, 4)),
    );
    scene.expect("split", set(&first, libc::F_UNLCK, 3, 1), done);
    scene.expect("in the gap", set(&second, libc::F_WRLCK, 3, 1), done);
    drop(first);
    scene.expect("after its close", set(&second, libc::F_WRLCK, 0, 0), done);
    Ok(())
}

fn processes(scene: &Scene) -> Result<()> {
    let first = scene.file("f", b"")?;
    let second = scene.open("f", 0)?;
    let of_process = lock(&first, libc::F_SETLK, libc::F_WRLCK, 0, 10).map(drop);
    scene.expect("lock", of_process, Ok::<_, Errno>(()));
    let again = lock(&second, libc::F_SETLK, libc::F_WRLCK, 5, 10).map(drop);
    scene.expect("the same process", again, Ok::<_, Errno>(()));
    let other = lock(&second, libc::F_OFD_SETLK, libc::F_RDLCK, 0, 1).map(drop);
    scene.expect(
        "an open file description",
        other,
        Err::<(), _>(Errno::AGAIN),
    );
    drop(first);
    let other = lock(&second, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 20).map(drop);
    scene.expect("after any close", other, Ok::<_, Errno>(()));
    Ok(())
}

fn names(scene: &Scene) -> Result<()> {
    let first = scene.file("f", b"")?;
    fs::hard_link(scene.path("f"), scene.path("g"))?;
    flock(&first, FlockOperation::NonBlockingLockExclusive)?;
    lock(&first, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0)?;
    let other = scene.open("g", 0)?;
    let whole = flock(&other, FlockOperation::NonBlockingLockShared);
    scene.expect("flock", whole, Err::<(), _>(Errno::AGAIN));
    let range = lock(&other, libc::F_OFD_SETLK, libc::F_RDLCK, 1, 1).map(drop);
    scene.expect("byte range", range, Err::<(), _>(Errno::AGAIN));
    fs::rename(scene.path("g"), scene.path("h"))?;
    let moved = scene.open("h", 0)?;
    let whole = flock(&moved, FlockOperation::NonBlockingLockShared);
    scene.expect("after a rename", whole, Err::<(), _>(Errno::AGAIN));
    Ok(())
}
