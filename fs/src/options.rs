//! The mount options that follow `-o`, as mount(8) and mount.fuse(8) users write them.

use std::str::FromStr;

use fuser::MountOption;

use crate::passthrough::IoMode;

/// Options that belong to fstab(5), mount(8) or systemd and mean nothing to a server.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "relatime",
    "norelatime",
    "lazytime",
    "nolazytime",
    "rw",
    "async",
    "atime",
];

/// Every option that is understood, from all `-o` arguments together. Where two
/// contradict each other the later one counts, as for mount(8).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    flags: Vec<MountOption>,
    kernel: Vec<MountOption>,
    /// Let every user in, not only the one who mounted. Always so for root.
    pub allow_other: bool,
    /// The name that mount(8) shows as the source.
    pub source_name: Option<String>,
    /// What follows `fuse.` in the type that mount(8) shows.
    pub subtype: Option<String>,
    /// Dispatch threads, as `--threads`.
    pub threads: Option<usize>,
    /// How reads and writes travel, as `--io`.
    pub io: Option<IoMode>,
}

impl MountOptions {
    /// Reads one argument of `-o`: options separated by commas.
    ///
    /// # Errors
    /// A sentence that names the option that is unknown or malformed.
    pub fn add(&mut self, list: &str) -> Result<(), String> {
        let mut options = list.split(',').filter(|option| !option.is_empty());
        options.try_for_each(|option| self.add_one(option))
    }

    /// What fuser passes on to mount(2).
    #[must_use]
    pub fn to_fuser(&self) -> Vec<MountOption> {
        [self.flags.clone(), self.kernel.clone()].concat()
    }

    fn add_one(&mut self, option: &str) -> Result<(), String> {
        if let Some((key, value)) = option.split_once('=') {
            return self.add_valued(option, key, value);
        }
        if let Some((on, off)) = flag_pair(option) {
            // Only the flag that differs from the default has to reach mount(2), but a
            // later one takes an earlier one back.
            self.flags.retain(|flag| *flag != on && *flag != off);
            self.flags.push(on);
            return Ok(());
        }
        match option {
            "allow_other" => self.allow_other = true,
            "default_permissions" => self.kernel_option(MountOption::DefaultPermissions),
            _ if IGNORED.contains(&option) => self.take_back(option),
            _ if is_comment(option) => {}
            _ => return Err(format!("unknown mount option `{option}`")),
        }
        Ok(())
    }

    fn add_valued(&mut self, option: &str, key: &str, value: &str) -> Result<(), String> {
        match key {
            "fsname" => self.source_name = Some(value.to_owned()),
            "subtype" => self.subtype = Some(value.to_owned()),
            "max_read" => {
                let bytes: u32 = number(option, value)?;
                self.kernel_option(MountOption::CUSTOM(format!("max_read={bytes}")));
            }
            "threads" => self.threads = Some(thread_count(value)?),
            "io" => self.io = Some(value.parse()?),
            _ if is_comment(key) => {}
            _ => return Err(format!("unknown mount option `{option}`")),
        }
        Ok(())
    }

    fn kernel_option(&mut self, option: MountOption) {
        if !self.kernel.contains(&option) {
            self.kernel.push(option);
        }
    }

    /// The ignored options `rw`, `async` and `atime` are defaults that undo a flag.
    fn take_back(&mut self, option: &str) {
        let undone: &[MountOption] = match option {
            "rw" => &[MountOption::RO],
            "async" => &[MountOption::Sync],
            "atime" => &[MountOption::NoAtime],
            _ => &[],
        };
        self.flags.retain(|flag| !undone.contains(flag));
    }
}

/// A flag of mount(2), and its opposite.
fn flag_pair(option: &str) -> Option<(MountOption, MountOption)> {
    use MountOption::{
        Async, Atime, Dev, DirSync, Exec, NoAtime, NoDev, NoExec, NoSuid, RO, RW, Suid, Sync,
    };
    Some(match option {
        "ro" => (RO, RW),
        "dev" => (Dev, NoDev),
        "nodev" => (NoDev, Dev),
        "suid" => (Suid, NoSuid),
        "nosuid" => (NoSuid, Suid),
        "exec" => (Exec, NoExec),
        "noexec" => (NoExec, Exec),
        "noatime" => (NoAtime, Atime),
        "sync" => (Sync, Async),
        "dirsync" => (DirSync, DirSync),
        _ => return None,
    })
}

/// Options that are comments by convention (mount(8): `X-*` and `x-*`, `comment=`).
fn is_comment(key: &str) -> bool {
    key.starts_with("x-") || key.starts_with("X-") || key == "comment"
}

fn number<T: FromStr>(option: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("mount option `{option}`: `{value}` is not a number"))
}

/// Reads a number of dispatch threads.
///
/// # Errors
/// A sentence, unless it is from 1 to 256.
pub fn thread_count(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(count @ 1..=256) => Ok(count),
        _ => Err(format!(
            "`{value}` is not a number of threads from 1 to 256"
        )),
    }
}

impl FromStr for IoMode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cached" => Ok(IoMode::Cached),
            "direct" => Ok(IoMode::Direct),
            _ => Err(format!("`{name}` is not an I/O mode: cached or direct")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lists: &[&str]) -> Result<MountOptions, String> {
        let mut options = MountOptions::default();
        lists.iter().try_for_each(|list| options.add(list))?;
        Ok(options)
    }

    #[test]
    fn what_mount_passes_is_understood() {
        let options = parse(&[
            "rw,nosuid,nodev,relatime,x-systemd.automount",
            "allow_other,,ro",
        ]);
        let options = options.unwrap();
        assert!(options.allow_other);
        assert_eq!(
            options.to_fuser(),
            [MountOption::NoSuid, MountOption::NoDev, MountOption::RO]
        );
    }

    #[test]
    fn the_later_option_counts() {
        assert_eq!(parse(&["ro,rw"]).unwrap().to_fuser(), []);
        assert_eq!(
            parse(&["suid,nosuid"]).unwrap().to_fuser(),
            [MountOption::NoSuid]
        );
    }

    #[test]
    fn values_are_read() {
        let options = parse(&["fsname=a=b,subtype=x,threads=3,io=direct,max_read=4096"]).unwrap();
        assert_eq!(options.source_name.as_deref(), Some("a=b"));
        assert_eq!(options.subtype.as_deref(), Some("x"));
        assert_eq!(options.threads, Some(3));
        assert_eq!(options.io, Some(IoMode::Direct));
        assert_eq!(
            options.to_fuser(),
            [MountOption::CUSTOM("max_read=4096".into())]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, named) in [
            ("ro,allow_othr", "allow_othr"),
            ("threads=0", "`0`"),
            ("threads=many", "`many`"),
            ("io=fast", "`fast`"),
            ("max_read=big", "max_read=big"),
            ("no=thing", "no=thing"),
        ] {
            let message = parse(&[list]).unwrap_err();
            assert!(message.contains(named), "{list}: {message}");
        }
    }
}
