//! What the tests of this crate share: a directory of their own, the tools they run, a client.
#![allow(
    dead_code,
    reason = "each test binary is compiled with this and uses a part"
)]

pub(crate) mod client;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use plugpull_disk::{ByteCount, Disk, DiskConfig, Honesty, Seed, Server, View};

/// A disk with its server in a directory of its own.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) base: View,
    pub(crate) disk: Disk,
    pub(crate) server: Option<Server>,
}

impl Rig {
    pub(crate) fn new(size: ByteCount, honesty: Honesty) -> Rig {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = View::zeros(size).expect("a size");
        let config = DiskConfig {
            honesty,
            seed: Seed(7),
            ..DiskConfig::default()
        };
        let disk = Disk::create(base.clone(), &dir.path().join("disk.log"), config).expect("disk");
        let server = disk.serve(&dir.path().join("nbd.sock")).expect("server");
        Rig {
            dir,
            base,
            disk,
            server: Some(server),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path("nbd.sock").display())
    }

    pub(crate) fn connect(&self) -> client::Client {
        client::Client::connect(&self.path("nbd.sock"))
    }
}

/// Runs a tool of Debian's qemu-utils and returns what it printed; a missing tool is a failure.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> String {
    let output = command(Path::new(tool), arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("{tool} cannot be run ({error}): install the package qemu-utils")
        });
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{tool} {}: {}\n{text}",
        arguments.join(" "),
        output.status
    );
    text
}

/// A command with nothing on its standard input.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where these tests start a program"
)]
pub(crate) fn command(program: &Path, arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Everything a view holds.
pub(crate) fn content(view: &View) -> Vec<u8> {
    let mut bytes = vec![0; view.size().0 as usize];
    view.read_at(0, &mut bytes).expect("the whole disk");
    bytes
}

/// Bytes that look like nothing else, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}
