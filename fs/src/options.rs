//! The mount options that follow `-o`, as mount(8) and mount.fuse(8) users write them.

use std::str::FromStr;

use rustix::mount::MountFlags;

use crate::passthrough::{CachePolicy, IoMode, Transport};

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
    /// Names of flags of mount(2) that differ from its defaults, in order.
    flags: Vec<&'static str>,
    /// Options of the FUSE filesystem type.
    fuse: Vec<String>,
    /// Let every user in, not only the one who mounted. Always so for root.
    pub allow_other: bool,
    /// Let the kernel check permissions. Always so for root and with `allow_other`.
    pub default_permissions: bool,
    /// The name that mount(8) shows as the source.
    pub source_name: Option<String>,
    /// What follows `fuse.` in the type that mount(8) shows.
    pub subtype: Option<String>,
    /// Dispatch threads, as `--threads`.
    pub threads: Option<usize>,
    /// How reads and writes travel, as `--io`.
    pub io: Option<IoMode>,
    /// What the kernel may believe, as `--cache`.
    pub cache: Option<CachePolicy>,
    /// How requests come, as `--transport`.
    pub transport: Option<Transport>,
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

    /// The flags of mount(2). Devices and set-id bits count only where they are asked
    /// for, as with every FUSE mount.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
        for name in &self.flags {
            match *name {
                "ro" => flags |= MountFlags::RDONLY,
                "dev" => flags -= MountFlags::NODEV,
                "suid" => flags -= MountFlags::NOSUID,
                "noexec" => flags |= MountFlags::NOEXEC,
                "noatime" => flags |= MountFlags::NOATIME,
                "sync" => flags |= MountFlags::SYNCHRONOUS,
                "dirsync" => flags |= MountFlags::DIRSYNC,
                _ => {}
            }
        }
        flags
    }

    /// Options of the FUSE filesystem type for mount(2), such as `max_read=4096`.
    #[must_use]
    pub fn fuse_options(&self) -> &[String] {
        &self.fuse
    }

    /// All options by name, for fusermount3.
    #[must_use]
    pub fn helper_options(&self) -> Vec<String> {
        let mut options: Vec<String> = self.flags.iter().map(|flag| (*flag).to_owned()).collect();
        if self.allow_other {
            options.push("allow_other".to_owned());
        }
        if self.allow_other || self.default_permissions {
            options.push("default_permissions".to_owned());
        }
        options.extend_from_slice(&self.fuse);
        options
    }

    fn add_one(&mut self, option: &str) -> Result<(), String> {
        if let Some((key, value)) = option.split_once('=') {
            return self.add_valued(option, key, value);
        }
        if let Some((on, off)) = flag_pair(option) {
            // A later flag takes an earlier one back.
            self.flags.retain(|flag| *flag != on && *flag != off);
            self.flags.push(on);
            return Ok(());
        }
        match option {
            "allow_other" => self.allow_other = true,
            "default_permissions" => self.default_permissions = true,
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
                self.fuse
                    .retain(|earlier| !earlier.starts_with("max_read="));
                self.fuse.push(format!("max_read={bytes}"));
            }
            "threads" => self.threads = Some(thread_count(value)?),
            "io" => self.io = Some(value.parse()?),
            "cache" => self.cache = Some(value.parse()?),
            "transport" => self.transport = Some(value.parse()?),
            _ if is_comment(key) => {}
            _ => return Err(format!("unknown mount option `{option}`")),
        }
        Ok(())
    }

    /// The ignored options `rw`, `async` and `atime` are defaults that undo a flag.
    fn take_back(&mut self, option: &str) {
        let undone = match option {
            "rw" => "ro",
            "async" => "sync",
            "atime" => "noatime",
            _ => return,
        };
        self.flags.retain(|flag| *flag != undone);
    }
}

/// A flag of mount(2), and its opposite.
fn flag_pair(option: &str) -> Option<(&'static str, &'static str)> {
    const PAIRS: [(&str, &str); 10] = [
        ("ro", "rw"),
        ("dev", "nodev"),
        ("nodev", "dev"),
        ("suid", "nosuid"),
        ("nosuid", "suid"),
        ("exec", "noexec"),
        ("noexec", "exec"),
        ("noatime", "atime"),
        ("sync", "async"),
        ("dirsync", "dirsync"),
    ];
    PAIRS.into_iter().find(|(on, _)| *on == option)
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
        named(name, "an I/O mode", &IoMode::ALL)
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        named(name, "a transport", &Transport::ALL)
    }
}

impl FromStr for CachePolicy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        named(name, "a cache policy", &CachePolicy::ALL)
    }
}

fn named<T: Copy>(name: &str, what: &str, all: &[(T, &str)]) -> Result<T, String> {
    let found = all.iter().find(|(_, known)| *known == name);
    found.map(|(value, _)| *value).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|(_, name)| *name).collect();
        format!("`{name}` is not {what}: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID);

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
        assert_eq!(options.flags(), DEFAULT | MountFlags::RDONLY);
        assert_eq!(
            options.helper_options(),
            [
                "nosuid",
                "nodev",
                "ro",
                "allow_other",
                "default_permissions"
            ]
        );
    }

    #[test]
    fn the_later_option_counts() {
        assert_eq!(parse(&["ro,rw"]).unwrap().flags(), DEFAULT);
        assert_eq!(parse(&["suid,nosuid"]).unwrap().flags(), DEFAULT);
        assert_eq!(
            parse(&["dev,suid,noexec"]).unwrap().flags(),
            MountFlags::NOEXEC
        );
    }

    #[test]
    fn values_are_read() {
        let list = "fsname=a=b,subtype=x,threads=3,io=direct,cache=none,transport=device,\
                    max_read=4096";
        let options = parse(&[list]).unwrap();
        assert_eq!(options.source_name.as_deref(), Some("a=b"));
        assert_eq!(options.subtype.as_deref(), Some("x"));
        assert_eq!(options.threads, Some(3));
        assert_eq!(options.io, Some(IoMode::Direct));
        assert_eq!(options.cache, Some(CachePolicy::None));
        assert_eq!(options.transport, Some(Transport::Device));
        assert_eq!(options.fuse_options(), ["max_read=4096"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, named) in [
            ("ro,allow_othr", "allow_othr"),
            ("threads=0", "`0`"),
            ("threads=many", "`many`"),
            ("io=fast", "`fast`"),
            ("cache=some", "none, auto, always"),
            ("transport=post", "auto, io-uring, device"),
            ("max_read=big", "max_read=big"),
            ("no=thing", "no=thing"),
        ] {
            let message = parse(&[list]).unwrap_err();
            assert!(message.contains(named), "{list}: {message}");
        }
    }
}
