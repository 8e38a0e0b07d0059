//! What the kernel's FUSE client does on its own, whatever the server: what random
//! sequences therefore leave out, and where named checks see it.

use anyhow::{Context, Result};

/// How a server has the kernel do its reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Client {
    /// What the page cache does not have, and every write, is a request.
    Requests,
    /// Every read and write is a request (`FOPEN_DIRECT_IO`).
    Direct,
    /// Writes stay in the page cache (`FUSE_WRITEBACK_CACHE`).
    Writeback,
    /// The kernel reads and writes the lower files itself (`FUSE_PASSTHROUGH`).
    Passthrough,
}

/// A version of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(u32, u32);

impl Kernel {
    /// The one that runs here.
    ///
    /// # Errors
    /// If its release does not begin with two numbers.
    pub fn running() -> Result<Self> {
        let name = rustix::system::uname();
        let release = name.release().to_string_lossy();
        Self::of(&release).with_context(|| format!("the kernel's release is {release:?}"))
    }

    /// Whether this machine's is older; one whose release says nothing is taken for new,
    /// which tolerates less.
    pub(crate) fn is_older_than(major: u32, minor: u32) -> bool {
        Self::running().is_ok_and(|kernel| kernel < Self(major, minor))
    }

    /// `6.1.0-50-amd64` is 6.1.
    fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next()?.parse().ok();
        Some(Self(number()?, number()?))
    }
}

/// A named check that fails because of the kernel's client, and how.
#[derive(Debug)]
pub struct Limit {
    client: Client,
    /// The first kernel without it.
    gone_in: Option<Kernel>,
    /// The check.
    pub check: &'static str,
    /// A part of what it says, so that it does not fail for another reason.
    pub message: &'static str,
    /// Why no server can change it.
    pub reason: &'static str,
    /// It is the limit of the filesystem below that is not met in time: met for certain on
    /// ext4, where there may be none on another.
    pub is_of_ext4: bool,
}

/// Shared mappings of files whose reads and writes are all requests.
const DIRECT_MAPPINGS: Kernel = Kernel(6, 6);
const NO_MAPPINGS: &str = "a shared mapping of a file in direct mode is ENODEV before Linux 6.6, \
                           which has FUSE_DIRECT_IO_ALLOW_MMAP";

const fn unmapped(check: &'static str) -> Limit {
    Limit {
        client: Client::Direct,
        gone_in: Some(DIRECT_MAPPINGS),
        check,
        message: "No such device (os error 19)",
        reason: NO_MAPPINGS,
        is_of_ext4: false,
    }
}

const fn written_back(check: &'static str, message: &'static str, reason: &'static str) -> Limit {
    Limit {
        client: Client::Writeback,
        gone_in: None,
        check,
        message,
        reason,
        is_of_ext4: true,
    }
}

const LIMITS: &[Limit] = &[
    unmapped("mmap-coherence"),
    unmapped("mmap-beyond-the-end"),
    unmapped("truncate-on-open"),
    written_back(
        "largest-file",
        "write at the limit: the mount says Ok(1)",
        "the page cache takes the write; the filesystem below refuses it later, and fsync(2) \
         says so",
    ),
    written_back(
        "times-follow-writes",
        "after truncate to the same size: the mount says At",
        "the client keeps times of its own and changes none where the size stays \
         (fuse_do_setattr in fs/fuse/dir.c)",
    ),
    written_back(
        "times-before-1970",
        "-2147483648: the mount says",
        "the client keeps times of its own and knows no limits but its own",
    ),
    written_back(
        "times-after-2106",
        "20000000000: the mount says",
        "the client keeps times of its own and knows no limits but its own",
    ),
];

impl Client {
    /// Texts of calls, as in a script, that sequences leave out.
    #[must_use]
    pub fn left_out(self, kernel: Kernel) -> Vec<String> {
        // An append-only inode (FS_APPEND_FL) is one to the filesystem below alone:
        // the client lets fcntl(2) and mmap(2) try what they natively may not. And
        // with FUSE_HANDLE_KILLPRIV_V2 the client makes no request of a chown(2) that
        // names neither owner nor group (fuse_do_setattr in fs/fuse/dir.c), which
        // natively clears set-id bits.
        let always = ["append: true", "user: None, group: None"];
        let more: &[&str] = match self {
            Client::Direct if !self.maps_shared(kernel) => &["shared: true"],
            Client::Requests | Client::Direct => &[],
            // The client keeps times of its own and knows no limits but its own.
            Client::Writeback => &["20000000000", "-3000000000", "-2147483648"],
            // The kernel writes with the rights of the server, which gives up
            // CAP_FSETID for it: set-id bits go also where root may keep them.
            Client::Passthrough => &["0o2755", "0o6777", "0o4755", "0o2644"],
        };
        always.iter().chain(more).map(ToString::to_string).collect()
    }

    /// Whether files can be mapped with `MAP_SHARED`.
    #[must_use]
    pub fn maps_shared(self, kernel: Kernel) -> bool {
        self != Client::Direct || kernel >= DIRECT_MAPPINGS
    }

    /// The limits that its named checks must meet.
    pub fn limits(self, kernel: Kernel) -> impl Iterator<Item = &'static Limit> {
        let here = move |limit: &&Limit| {
            limit.client == self && limit.gone_in.is_none_or(|gone_in| kernel < gone_in)
        };
        LIMITS.iter().filter(here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_begin_with_two_numbers() {
        assert_eq!(Kernel::of("6.1.0-50-amd64"), Some(Kernel(6, 1)));
        assert_eq!(Kernel::of("6.12+deb13"), Some(Kernel(6, 12)));
        assert_eq!(Kernel::of("next"), None);
        assert!(Kernel(6, 12) > Kernel(6, 6));
        Kernel::running().expect("this one's too");
    }

    #[test]
    fn direct_mode_has_no_shared_mappings_before_6_6() {
        let (old, new) = (Kernel(6, 1), Kernel(6, 6));
        let shared = |client: Client, kernel| {
            let left_out = client.left_out(kernel);
            let checks = client.limits(kernel).count();
            (left_out.iter().any(|text| text == "shared: true"), checks)
        };
        assert_eq!(shared(Client::Direct, old), (true, 3));
        assert_eq!(shared(Client::Direct, new), (false, 0));
        assert_eq!(shared(Client::Requests, old), (false, 0));
        assert_eq!(shared(Client::Writeback, old), (false, 4));
    }
}
