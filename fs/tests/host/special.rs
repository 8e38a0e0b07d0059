//! Special files and symbolic links: what they stand for is the business of the client's
//! kernel, in the client's view, and the server never opens or follows one.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags, mknodat};
use rustix::io::Errno;
use rustix::mount::{mount_bind, unmount};

use crate::exchange::snapshot;
use crate::harness::{Sandbox, Server};

/// What a server has open in earnest, not as a mere path (`O_PATH`), by name.
fn opened(server: &Server) -> Vec<PathBuf> {
    let process = PathBuf::from(format!("/proc/{}", server.pid()));
    let descriptors = fs::read_dir(process.join("fd")).unwrap();
    let in_earnest = descriptors.filter_map(|entry| {
        let number = entry.unwrap().file_name();
        // Both fail when it was closed meanwhile.
        let info = fs::read_to_string(process.join("fdinfo").join(&number)).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        let target = fs::read_link(process.join("fd").join(&number)).ok()?;
        (flags & libc::O_PATH == 0).then_some(target)
    });
    in_earnest.collect()
}

/// Those below `dir`.
fn opened_in(server: &Server, dir: &Path) -> Vec<PathBuf> {
    let mut files = opened(server);
    // The root itself stays open: handles are resolved with it.
    files.retain(|file| file.starts_with(dir) && file != dir);
    files
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

#[test]
fn the_server_opens_files_and_no_special_ones() {
    let sandbox = Sandbox::new();
    let (source, mount) = (sandbox.source(), sandbox.mountpoint());
    let server = sandbox.serve(&[]);
    // Control: an open file is found among the server's.
    let file = File::create(mount.join("file")).unwrap();
    assert_eq!(opened_in(&server, &source), [source.join("file")]);
    drop(file);
    fs::remove_file(mount.join("file")).unwrap();

    mknodat(CWD, source.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let reader = open(&mount.join("fifo"), OFlags::RDONLY).unwrap();
    assert_eq!(opened_in(&server, &source), Vec::<PathBuf>::new());
    // The mount's fifo and the source's are two, as on every two mounts of a network
    // filesystem: a reader of the one is none for a writer of the other.
    let writer = |dir: &Path| open(&dir.join("fifo"), OFlags::WRONLY);
    assert_eq!(writer(&source).err(), Some(Errno::NXIO));
    writer(&mount).unwrap().write_all(b"within").unwrap();
    let mut text = [0; 6];
    (&reader).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"within");
    drop(reader);
    let reader = open(&source.join("fifo"), OFlags::RDONLY).unwrap();
    assert_eq!(writer(&mount).err(), Some(Errno::NXIO));
    // Control: in the source itself they meet.
    writer(&source).unwrap();
    drop(reader);

    // Nor does a socket that somebody listens on in the source answer on the mount.
    let listener = UnixListener::bind(source.join("socket")).unwrap();
    let refused = UnixStream::connect(mount.join("socket")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(
        open(&mount.join("socket"), OFlags::RDONLY).err(),
        Some(Errno::NXIO)
    );
    UnixStream::connect(source.join("socket")).unwrap();
    drop(listener);
    let listener = UnixListener::bind(mount.join("within")).unwrap();
    UnixStream::connect(mount.join("within")).unwrap();
    drop(listener);
    server.unmount();
}

/// /dev/zero.
fn zero(dir: &Path) -> PathBuf {
    let node = dir.join("zero");
    mknodat(
        CWD,
        &node,
        FileType::CharacterDevice,
        Mode::RWXU,
        rustix::fs::makedev(1, 5),
    )
    .unwrap();
    node
}

#[test]
fn devices_and_set_id_bits_do_not_count_unless_asked_for() {
    let nosuid_and_nodev = [(&[][..], true), (&["-o", "dev,suid"][..], false)];
    for (arguments, protected) in nosuid_and_nodev {
        let sandbox = Sandbox::new();
        let (source, mount) = (sandbox.source(), sandbox.mountpoint());
        zero(&source);
        fs::copy("/usr/bin/id", source.join("id")).unwrap();
        fs::set_permissions(source.join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
        let server = sandbox.serve(arguments);
        let device = open(&mount.join("zero"), OFlags::RDONLY);
        assert_eq!(device.as_ref().err(), protected.then_some(&Errno::ACCESS));
        assert!(!opened(&server).contains(&source.join("zero")));
        let id = mount.join("id");
        let id = [
            "setpriv",
            "--reuid",
            "65534",
            "--clear-groups",
            id.to_str().unwrap(),
            "-u",
        ];
        let expected = if protected { "65534\n" } else { "0\n" };
        assert_eq!(crate::harness::run_ok("util-linux", &id), expected);
        drop(device);
        server.unmount();
    }
}

/// Every call that follows a symbolic link, and every one that does not, with its outcome.
fn through_links(dir: &Path) -> Vec<String> {
    let mut outcomes = Vec::new();
    for name in ["absolute", "relative"] {
        let link = dir.join(name);
        let c_name = CString::new(link.as_os_str().as_encoded_bytes()).unwrap();
        let path = c_name.as_c_str();
        let done = |result: std::io::Result<()>| result.map_err(|error| error.raw_os_error());
        let open = |flags: i32, write: bool| {
            let mut options = File::options();
            options.read(true).write(write).custom_flags(flags);
            options.open(&link)
        };
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        let stamps = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
        };
        let itself = AtFlags::SYMLINK_NOFOLLOW;
        let (user, trusted, none) = ("user.x", "trusted.x", XattrFlags::empty());
        let (hard, moved) = (dir.join("hard"), dir.join("moved"));
        let owner = Some(rustix::fs::Uid::from_raw(7));
        let followed = [
            fs::set_permissions(&link, fs::Permissions::from_mode(0o640)),
            open(0, true).and_then(|file| file.set_len(3)),
            open(libc::O_TRUNC, true).map(drop),
            fs::write(&link, "written"),
            rustix::fs::setxattr(path, user, b"v", none).map_err(Into::into),
            open(0, false).and_then(|file| file.set_times(times)),
            rustix::fs::utimensat(CWD, path, &stamps, AtFlags::empty()).map_err(Into::into),
            rustix::fs::chown(path, owner, None).map_err(Into::into),
        ];
        let not_followed = [
            open(libc::O_NOFOLLOW, true).map(drop),
            open(libc::O_NOFOLLOW | libc::O_TRUNC, true).map(drop),
            rustix::fs::utimensat(CWD, path, &stamps, itself).map_err(Into::into),
            rustix::fs::chownat(CWD, path, owner, None, itself).map_err(Into::into),
            rustix::fs::lsetxattr(path, user, b"v", none).map_err(Into::into),
            rustix::fs::lsetxattr(path, trusted, b"v", none).map_err(Into::into),
            rustix::fs::linkat(CWD, path, CWD, &hard, AtFlags::empty()).map_err(Into::into),
            fs::rename(&hard, &moved),
            fs::read_link(&moved).map(drop),
            fs::remove_file(&moved),
        ];
        for result in followed.into_iter().chain(not_followed) {
            outcomes.push(format!("{name} {:?}", done(result)));
        }
        let content = fs::read_to_string(&link).map_err(|error| error.raw_os_error());
        let stat = rustix::fs::statat(CWD, path, itself).unwrap();
        let attributes = (stat.st_mode, stat.st_uid, stat.st_nlink, stat.st_mtime);
        outcomes.push(format!("{name} {content:?} {attributes:?}"));
    }
    outcomes
}

/// Runs as a thread with a root of its own.
#[expect(unsafe_code, reason = "unshare(2) of a thread's root directory")]
fn in_root<T: Send>(root: &Path, run: impl FnOnce() -> T + Send) -> T {
    let chrooted = || {
        // SAFETY: CLONE_FILES is not among the flags, so no descriptor changes its meaning.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.unwrap();
        rustix::process::chroot(root).unwrap();
        rustix::process::chdir("/").unwrap();
        run()
    };
    thread::scope(|scope| scope.spawn(chrooted).join().unwrap())
}

#[test]
fn links_lead_where_the_client_sees_them_lead() {
    let sandbox = Sandbox::new();
    let (source, outside, jail) = (
        sandbox.source(),
        sandbox.path("outside"),
        sandbox.path("jail"),
    );
    // Where the links lead from the source, and where in a root and a place of its own.
    let (absolute, relative) = (outside.join("absolute"), outside.join("relative"));
    let below = |path: &Path| jail.join(path.strip_prefix("/").unwrap());
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(below(&outside)).unwrap();
    for dir in ["mount", "native", "outside"] {
        fs::create_dir(jail.join(dir)).unwrap();
    }
    for dir in [&source, &sandbox.native()] {
        symlink(&absolute, dir.join("absolute")).unwrap();
        symlink("../outside/relative", dir.join("relative")).unwrap();
    }
    for target in [
        &absolute,
        &relative,
        &below(&absolute),
        &jail.join("outside/relative"),
    ] {
        fs::write(target, "untouched").unwrap();
    }
    mount_bind(sandbox.native(), jail.join("native")).unwrap();
    let before = snapshot(&outside);
    let server = Server::start(&source, &jail.join("mount"), &[]);

    let native = in_root(&jail, || through_links(Path::new("/native")));
    assert!(native.iter().any(|outcome| outcome.contains("Ok(())")));
    for target in [below(&absolute), jail.join("outside/relative")] {
        assert_eq!(fs::read_to_string(&target).unwrap(), "written");
        fs::write(&target, "untouched").unwrap();
    }
    let mounted = in_root(&jail, || through_links(Path::new("/mount")));
    assert_eq!(mounted, native);
    for target in [below(&absolute), jail.join("outside/relative")] {
        assert_eq!(fs::read_to_string(&target).unwrap(), "written");
    }
    assert_eq!(snapshot(&outside), before, "the server followed a link");
    server.unmount();
    unmount(jail.join("native"), rustix::mount::UnmountFlags::empty()).unwrap();
    // Control: where the server is, the same calls change what is outside.
    through_links(&source);
    assert_ne!(snapshot(&outside), before);
}
