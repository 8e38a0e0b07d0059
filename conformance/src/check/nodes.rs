//! Special files: devices, fifos, sockets, symlinks.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::Result;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::io::Errno;

use super::Line;
use super::scene::{Scene, code};
use crate::op::User;

pub(super) const CHECKS: &[Line] = &[
    (
        "device-nodes",
        "Device nodes keep kind and numbers, as large as every filesystem takes them.",
        devices,
    ),
    ("fifos", "A fifo on the mount connects its two ends.", fifos),
    (
        "sockets",
        "A socket can be bound and connected by a name on the mount.",
        sockets,
    ),
    (
        "symlinks",
        "Symlinks hold any target that the filesystem below takes, are never followed by the server, and loops are ELOOP.",
        symlinks,
    ),
    (
        "mknod-by-others",
        "An ordinary user makes fifos and sockets, but no devices.",
        by_others,
    ),
];

fn devices(scene: &Scene) -> Result<()> {
    let nodes = [
        ("null", FileType::CharacterDevice, (1, 3)),
        ("large", FileType::BlockDevice, (511, 262_143)),
        ("whiteout", FileType::CharacterDevice, (0, 0)),
    ];
    for (name, kind, (major, minor)) in nodes {
        mknodat(
            CWD,
            scene.path(name),
            kind,
            Mode::from_raw_mode(0o600),
            makedev(major, minor),
        )?;
        let stat = scene.stat(name)?;
        scene.expect(format!("numbers of {name}"), stat.device, (major, minor));
        scene.see(format!("mode of {name}"), format!("{:o}", stat.mode));
    }
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(scene.path("null"));
    scene.see(
        "open",
        code(
            null.as_ref()
                .map_err(|error| std::io::Error::from(error.kind())),
        ),
    );
    if let Ok(mut null) = null {
        null.write_all(b"gone")?;
        scene.expect("read", null.read(&mut [0; 8])?, 0);
    }
    let large = open(scene.path("large"), OFlags::RDONLY, Mode::empty()).map(drop);
    scene.see("open what does not exist", large);
    scene.expect(
        "truncate",
        crate::sys::truncate(scene.path("large"), 0),
        Err::<(), _>(Errno::INVAL),
    );
    Ok(())
}

fn fifos(scene: &Scene) -> Result<()> {
    let path = scene.path("fifo");
    rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600))?;
    scene.expect("kind", fs::metadata(&path)?.file_type().is_fifo(), true);
    let alone = open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).map(drop);
    scene.expect("no reader", alone, Err::<(), _>(Errno::NXIO));
    let mut reader = fs::File::from(open(
        &path,
        OFlags::RDONLY | OFlags::NONBLOCK,
        Mode::empty(),
    )?);
    let mut writer = fs::File::from(open(&path, OFlags::WRONLY, Mode::empty())?);
    writer.write_all(b"through")?;
    let mut bytes = [0; 7];
    reader.read_exact(&mut bytes)?;
    scene.expect("what came", bytes, *b"through");
    scene.expect("size", fs::metadata(&path)?.len(), 0);
    Ok(())
}

fn sockets(scene: &Scene) -> Result<()> {
    // The address has room for 107 bytes, so the name is relative.
    rustix::process::chdir(&scene.dir)?;
    let listener = UnixListener::bind("socket")?;
    let mut client = UnixStream::connect("socket")?;
    client.write_all(b"hello")?;
    let (mut server, _) = listener.accept()?;
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes)?;
    scene.expect("what came", bytes, *b"hello");
    scene.see("kind", fs::metadata("socket")?.file_type().is_socket());
    let again = code(UnixListener::bind("socket"));
    scene.expect("bound again", again, Err::<(), _>(Errno::ADDRINUSE));
    scene.see("open", code(fs::File::open("socket")));
    drop(listener);
    scene.expect(
        "connect",
        code(UnixStream::connect("socket")),
        Err::<(), _>(Errno::CONNREFUSED),
    );
    rustix::process::chdir("/")?;
    Ok(())
}

fn symlinks(scene: &Scene) -> Result<()> {
    let long = "x/".repeat(2047) + "y";
    // XFS stops at 1024, ext4 at a block.
    let made = code(symlink(&long, scene.path("long")));
    scene.see("4095 bytes", made);
    let read = fs::read_link(scene.path("long")).map(|target| target.as_os_str() == &*long);
    scene.expect("read back", read.unwrap_or(made.is_err()), true);
    scene.see("size", scene.stat("long").map(|stat| stat.size));
    let longer = code(symlink(long + "z", scene.path("longer")));
    scene.expect("4096 bytes", longer, Err::<(), _>(Errno::NAMETOOLONG));
    scene.expect(
        "empty",
        code(symlink("", scene.path("empty"))),
        Err::<(), _>(Errno::NOENT),
    );
    symlink("b", scene.path("a"))?;
    symlink("a", scene.path("b"))?;
    scene.expect(
        "loop",
        code(fs::read(scene.path("a"))),
        Err::<(), _>(Errno::LOOP),
    );
    symlink("/proc/self/comm", scene.path("out"))?;
    // Followed by the kernel in the caller's own namespace.
    scene.expect(
        "out of the mount",
        code(fs::read(scene.path("out"))),
        Ok::<_, Errno>(()),
    );
    let nofollow = open(
        scene.path("out"),
        OFlags::RDONLY | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map(drop);
    scene.expect("O_NOFOLLOW", nofollow, Err::<(), _>(Errno::LOOP));
    fs::hard_link(scene.path("out"), scene.path("hard"))?;
    scene.expect(
        "hard link to it",
        fs::read_link(scene.path("hard"))?,
        "/proc/self/comm",
    );
    symlink("made", scene.path("dangling"))?;
    fs::write(scene.path("dangling"), "x")?;
    scene.expect("created through it", fs::read(scene.path("made"))?, b"x");
    let exclusive = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(scene.path("dangling"));
    scene.expect("O_EXCL", code(exclusive), Err::<(), _>(Errno::EXIST));
    Ok(())
}

fn by_others(scene: &Scene) -> Result<()> {
    let kinds = [
        ("fifo", FileType::Fifo),
        ("socket", FileType::Socket),
        ("file", FileType::RegularFile),
        ("null", FileType::CharacterDevice),
        ("block", FileType::BlockDevice),
    ];
    for (name, kind) in kinds {
        let made = scene.as_user(User::Alice, || {
            mknodat(
                CWD,
                scene.path(name),
                kind,
                Mode::from_raw_mode(0o666),
                makedev(1, 3),
            )
        })?;
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        scene.expect(
            name,
            made,
            if is_device { Err(Errno::PERM) } else { Ok(()) },
        );
        if !is_device {
            let stat = scene.stat(name)?;
            scene.expect(
                format!("owner of {name}"),
                (stat.user, stat.group),
                (1001, 1001),
            );
            scene.see(format!("mode of {name}"), stat.mode);
        }
    }
    Ok(())
}
