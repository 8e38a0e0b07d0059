//! What the kernel's FUSE client does on its own, whatever the server, and what random
//! sequences therefore leave out.

/// How a server has the kernel do its reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Client {
    /// Every read and write, or what the page cache does not have, is a request.
    Requests,
    /// Writes stay in the page cache (`FUSE_WRITEBACK_CACHE`).
    Writeback,
    /// The kernel reads and writes the lower files itself (`FUSE_PASSTHROUGH`).
    Passthrough,
}

impl Client {
    /// Texts of calls, as in a script, that sequences leave out.
    #[must_use]
    pub fn left_out(self) -> Vec<String> {
        // An append-only inode (FS_APPEND_FL) is one to the filesystem below alone:
        // the client lets fcntl(2) and mmap(2) try what they natively may not. And
        // with FUSE_HANDLE_KILLPRIV_V2 the client makes no request of a chown(2) that
        // names neither owner nor group (fuse_do_setattr in fs/fuse/dir.c), which
        // natively clears set-id bits.
        let always = ["append: true", "user: None, group: None"];
        let more: &[&str] = match self {
            Client::Requests => &[],
            // The client keeps times of its own and knows no limits but its own.
            Client::Writeback => &["20000000000", "-3000000000", "-2147483648"],
            // The kernel writes with the rights of the server, which gives up
            // CAP_FSETID for it: set-id bits go also where root may keep them.
            Client::Passthrough => &["0o2755", "0o6777", "0o4755", "0o2644"],
        };
        always.iter().chain(more).map(ToString::to_string).collect()
    }
}
