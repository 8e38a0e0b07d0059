//! The disk and the matrix: what a scenario runs on.

use std::{collections::BTreeMap, num::NonZeroU32, ops::Range};

use plugpull_vm::image::is_package_name;
use toml::Spanned;

use super::{
    complaints::{Complaints, texts},
    diagnostic::{listed, nearest},
};
use crate::scenario::{
    Bus, ByteCount, Cache, Disk, Fs, ImageName, IoMode, Lower, Matrix, Mount, Mutant, Named,
    Server, TakenFor,
    names::{NAME_RULE, name_problem},
    raw::{RawDisk, RawLower, RawMount, RawScenario, Text, Texts},
    units::MIB,
};

/// Mounts that need no table.
const NATIVE: &str = "native";
const PLUGPULL_FS: &str = "plugpull-fs";

/// More threads than this is a slip of the finger.
const MAX_THREADS: u32 = 256;

/// The disk; an absent table is an honest 1 GiB disk.
pub(super) fn disk(raw: Option<&RawDisk>, complaints: &mut Complaints) -> Option<Disk> {
    let Some(raw) = raw else {
        return Some(Disk {
            size: ByteCount(1 << 30),
            bus: Bus::Virtio,
            cache: Cache::Volatile,
            unit: 4096,
        });
    };
    let size = size(&raw.size, complaints);
    let bus = match &raw.bus {
        Some(name) => complaints.one_of(name),
        None => Some(Bus::Virtio),
    };
    let cache = match &raw.cache {
        Some(name) => complaints.one_of(name),
        None => Some(Cache::Volatile),
    };
    let unit = match &raw.unit {
        None => Some(4096),
        Some(unit) => match unit.get_ref() {
            512 => Some(512),
            4096 => Some(4096),
            _ => {
                complaints
                    .add(unit.span(), "no disk writes such a unit whole")
                    .expected("512 or 4096");
                None
            }
        },
    };
    Some(Disk {
        size: size?,
        bus: bus?,
        cache: cache?,
        unit: unit?,
    })
}

/// What the guest takes the disk for, where the scenario says so.
pub(super) fn taken_for(
    raw: Option<&RawDisk>,
    complaints: &mut Complaints,
) -> Option<Option<TakenFor>> {
    match raw.and_then(|disk| disk.taken_for.as_ref()) {
        Some(name) => complaints.one_of(name).map(Some),
        None => Some(None),
    }
}

fn size(raw: &Text, complaints: &mut Complaints) -> Option<ByteCount> {
    let Some(written) = raw else {
        return Some(ByteCount(1 << 30));
    };
    match ByteCount::parse(written.get_ref()) {
        Ok(size) if size.0 == 0 || !size.0.is_multiple_of(MIB) => {
            complaints
                .add(written.span(), format!("a disk cannot be {size}"))
                .expected("a multiple of 1 MiB");
            None
        }
        Ok(size) => Some(size),
        Err(expected) => {
            complaints
                .add(
                    written.span(),
                    format!("`{}` is no size", written.get_ref()),
                )
                .expected(expected);
            None
        }
    }
}

/// The matrix with every name looked up.
pub(super) fn matrix(
    raw: &RawScenario,
    images: &[ImageName],
    complaints: &mut Complaints,
) -> Option<Matrix> {
    let Some(table) = &raw.matrix else {
        complaints
            .add(0..0, "the table `[matrix]` is missing")
            .expected("`[matrix]` with the arrays `image`, `lower` and `mount`");
        return None;
    };
    let (span, table) = (table.span(), table.get_ref());
    let lowers = defined(&raw.lower, "lower", &table.lower, complaints, lower);
    let mounts = defined(&raw.mount, "mount", &table.mount, complaints, mount);

    let image = axis(
        &table.image,
        "image",
        &span,
        complaints,
        |name, complaints| {
            let found = images.iter().find(|image| image.as_str() == name.get_ref());
            if found.is_none() {
                unknown(
                    name,
                    "image",
                    images.iter().map(ImageName::as_str),
                    complaints,
                );
            }
            found.cloned()
        },
    );
    let lower = axis(
        &table.lower,
        "lower",
        &span,
        complaints,
        |name, complaints| match (Fs::from_name(name.get_ref()), lowers.get(name.get_ref())) {
            (Some(fs), _) => Some(plain(fs)),
            (None, Some(found)) => found.clone(),
            (None, None) => {
                let own = lowers.keys().map(String::as_str);
                let known = Fs::ALL.iter().map(|fs| fs.name()).chain(own);
                unknown(name, "lower", known, complaints);
                None
            }
        },
    );
    let mount = axis(
        &table.mount,
        "mount",
        &span,
        complaints,
        |name, complaints| match (builtin(name.get_ref()), mounts.get(name.get_ref())) {
            (Some(mount), _) => Some(mount),
            (None, Some(found)) => found.clone(),
            (None, None) => {
                let own = mounts.keys().map(String::as_str);
                let known = [NATIVE, PLUGPULL_FS].into_iter().chain(own);
                unknown(name, "mount", known, complaints);
                None
            }
        },
    );
    Some(Matrix {
        images: image?,
        lowers: lower?,
        mounts: mount?,
    })
}

fn axis<T>(
    names: &Texts,
    key: &str,
    table: &Range<usize>,
    complaints: &mut Complaints,
    read: impl FnMut(&Spanned<String>, &mut Complaints) -> Option<T>,
) -> Option<Vec<T>> {
    let Some(names) = names else {
        complaints
            .add(table.clone(), format!("`{key}` is missing"))
            .expected(format!("an array of names: `{key} = [\"…\"]`"));
        return None;
    };
    complaints.distinct(names, key, read)
}

fn unknown<'a>(
    name: &Spanned<String>,
    what: &str,
    known: impl Iterator<Item = &'a str>,
    complaints: &mut Complaints,
) {
    let known: Vec<_> = known.collect();
    let written = name.get_ref();
    let own = match what {
        "image" => String::new(),
        _ => format!(", or a table `[{what}.{written}]`"),
    };
    let what = match what {
        "lower" => "lower filesystem",
        other => other,
    };
    complaints
        .add(name.span(), format!("unknown {what} `{written}`"))
        .expected(format!("{}{own}", listed(known.iter().copied())))
        .nearest(nearest(written, known));
}

/// The tables `[lower.NAME]` or `[mount.NAME]`. A bad one stays in the map as
/// `None`, so that its use in the matrix is not complained about as well.
fn defined<R, T>(
    tables: &BTreeMap<Spanned<String>, R>,
    what: &str,
    used: &Texts,
    complaints: &mut Complaints,
    read: impl Fn(&Spanned<String>, &R, &mut Complaints) -> Option<T>,
) -> BTreeMap<String, Option<T>> {
    let used = texts(used);
    let mut all = BTreeMap::new();
    for (name, raw) in tables {
        let text = name.get_ref();
        if let Some(problem) = name_problem(text) {
            complaints
                .add(name.span(), format!("`{text}` cannot be a name: {problem}"))
                .expected(NAME_RULE);
        } else if Fs::from_name(text).is_some() && what == "lower" || builtin(text).is_some() {
            complaints
                .add(
                    name.span(),
                    format!("`{text}` is built in and cannot be defined again"),
                )
                .expected("a name of its own");
        } else if !used.contains(text) {
            complaints
                .add(name.span(), format!("`{text}` is defined and never used"))
                .expected(format!("`{text}` in the array `{what}` of `[matrix]`"))
                .nearest(nearest(text, used.iter().map(String::as_str)));
        }
        all.insert(text.clone(), read(name, raw, complaints));
    }
    all
}

fn plain(fs: Fs) -> Lower {
    Lower {
        name: fs.name().into(),
        fs,
        mkfs: Vec::new(),
        options: String::new(),
        mounted: true,
    }
}

fn lower(name: &Spanned<String>, raw: &RawLower, complaints: &mut Complaints) -> Option<Lower> {
    let Some(fs) = &raw.fs else {
        complaints
            .add(name.span(), "`fs` is missing")
            .expected(listed(Fs::ALL.iter().map(|fs| fs.name())));
        return None;
    };
    let mounted = raw.mounted.as_ref().is_none_or(|flag| *flag.get_ref());
    if let (Some(options), false) = (&raw.options, mounted) {
        complaints
            .add(
                options.span(),
                "mount options for a filesystem that is not mounted",
            )
            .expected("no `options`, or no `mounted = false`");
    }
    Some(Lower {
        name: name.get_ref().clone(),
        fs: complaints.one_of(fs)?,
        mkfs: texts(&raw.mkfs),
        options: text(&raw.options),
        mounted,
    })
}

fn text(written: &Text) -> String {
    written
        .as_ref()
        .map_or_else(String::new, |text| text.get_ref().clone())
}

fn builtin(name: &str) -> Option<Mount> {
    let server = match name {
        NATIVE => Server::Native,
        PLUGPULL_FS => Server::PlugpullFs {
            mutant: None,
            threads: None,
            io: None,
            options: String::new(),
        },
        _ => return None,
    };
    Some(Mount {
        name: name.into(),
        server,
    })
}

fn mount(name: &Spanned<String>, raw: &RawMount, complaints: &mut Complaints) -> Option<Mount> {
    let server = match &raw.run {
        Some(run) => program(run, raw, complaints)?,
        None => {
            if let Some(packages) = &raw.packages {
                complaints
                    .add(packages.span(), "`packages` are for a server of your own")
                    .expected("`run = [\"…\"]` beside it");
            }
            plugpull_fs(raw, complaints)?
        }
    };
    Some(Mount {
        name: name.get_ref().clone(),
        server,
    })
}

fn plugpull_fs(raw: &RawMount, complaints: &mut Complaints) -> Option<Server> {
    // The names are plugpull-fs's own: it is asked before a run begins.
    let mut own = |name: &Text, what: &str| match name {
        Some(name) => option_name(name, what, complaints).map(Some),
        None => Some(None),
    };
    let mutant = own(&raw.mutant, "mutant");
    let io = own(&raw.io, "io");
    let threads: Option<NonZeroU32> = match &raw.threads {
        Some(_) => Some(complaints.number("threads", &raw.threads, 1, MAX_THREADS)?),
        None => None,
    };
    Some(Server::PlugpullFs {
        mutant: mutant?.map(Mutant::new),
        threads,
        io: io?.map(IoMode::new),
        options: text(&raw.options),
    })
}

/// A name that can be an argument.
fn option_name(
    written: &Spanned<String>,
    what: &str,
    complaints: &mut Complaints,
) -> Option<String> {
    let name = written.get_ref();
    let Some(problem) = name_problem(name) else {
        return Some(name.clone());
    };
    complaints
        .add(
            written.span(),
            format!("`{name}` cannot be a value of `{what}`: {problem}"),
        )
        .expected(NAME_RULE);
    None
}

fn program(
    run: &Spanned<Vec<Spanned<String>>>,
    raw: &RawMount,
    complaints: &mut Complaints,
) -> Option<Server> {
    let spans = [
        ("mutant", raw.mutant.as_ref().map(Spanned::span)),
        ("threads", raw.threads.as_ref().map(Spanned::span)),
        ("io", raw.io.as_ref().map(Spanned::span)),
        ("options", raw.options.as_ref().map(Spanned::span)),
    ];
    for (key, span) in spans {
        if let Some(span) = span {
            complaints
                .add(
                    span,
                    format!("`{key}` is for plugpull-fs, and `run` names another server"),
                )
                .expected("the server's own arguments in `run`");
        }
    }
    let argv = complaints.argv(run, &["lower", "device", "mount"])?;
    let names = |text: &str| argv.words().iter().any(|word| word.contains(text));
    if !names("{mount}") || names("{lower}") == names("{device}") {
        complaints
            .add(run.span(), "the command does not say what it mounts where")
            .expected(
                "`{mount}`, and either `{lower}` (a directory) or `{device}` (a block device)",
            );
        return None;
    }
    let mut packages = raw.packages.iter().flat_map(Spanned::get_ref);
    if let Some(bad) = packages.find(|package| !is_package_name(package.get_ref())) {
        complaints
            .add(
                bad.span(),
                format!("`{}` is no name of a Debian package", bad.get_ref()),
            )
            .expected("lower-case letters, digits, `+`, `-` and `.`");
        return None;
    }
    Some(Server::Program {
        run: argv,
        packages: texts(&raw.packages),
    })
}

/// Whether every lower filesystem fits the disk and every mount.
pub(super) fn fits(matrix: &Matrix, disk: &Disk, raw: &RawScenario, complaints: &mut Complaints) {
    let place = |names: Option<&Texts>, name: &str| {
        let names = names.and_then(Option::as_ref)?.get_ref();
        names
            .iter()
            .find(|n| n.get_ref() == name)
            .map(Spanned::span)
    };
    let table = raw.matrix.as_ref().map(Spanned::get_ref);
    for lower in &matrix.lowers {
        let need = lower.fs.min_size_mib();
        if disk.size.mib() < need {
            let span = raw
                .disk
                .as_ref()
                .and_then(|disk| disk.size.as_ref())
                .map(Spanned::span);
            complaints
                .add(
                    span.unwrap_or(0..0),
                    format!("the disk is too small for {}", lower.fs),
                )
                .expected(format!("at least {need} MiB"));
        }
        for mount in &matrix.mounts {
            let device = match &mount.server {
                Server::Program { run, .. } => run.words().iter().any(|w| w.contains("{device}")),
                Server::Native | Server::PlugpullFs { .. } => false,
            };
            let (message, expected) = match (lower.mounted, device) {
                (true, false) | (false, true) => continue,
                (false, false) => (
                    format!(
                        "`{}` needs a mounted filesystem, and `{}` is not mounted",
                        mount.name, lower.name
                    ),
                    "a lower filesystem without `mounted = false`",
                ),
                (true, true) => (
                    format!(
                        "`{}` needs the block device, and `{}` is mounted from it",
                        mount.name, lower.name
                    ),
                    "a table `[lower.NAME]` with `mounted = false`",
                ),
            };
            let span = place(table.map(|t| &t.mount), &mount.name);
            complaints
                .add(span.unwrap_or(0..0), message)
                .expected(expected);
        }
    }
}
