//! Prepares a run: everything that guests need is found, built or fetched here,
//! before the first test starts, with progress for a person to see.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, Result};
use plugpull_vm::{
    accel::{self, Wish},
    cache::{ContentHash, Home},
    guest::Payload,
    host::{self, HostEvent},
    image::{self, BuildEvent, Image, Recipe, apt},
    initramfs,
    payload::{self, PayloadFile},
    tools::{self, Qemu, ToolEvent},
};

use crate::{
    artifacts::{self, Artifacts},
    base::{Base, Kind, PLAIN_CLUSTER, Wanted},
    mounts, programs,
    progress::{Activity, Event, Outcome, Progress},
    scenario::{Case, Cuttable, ImageName, LedgerLoad, Profile, Story},
    sharing::Sharing,
    testbed::{ImageSetup, Setup, Testbed},
};

/// What a run asks for.
#[derive(Debug)]
pub struct Order<'a> {
    /// Where all randomness comes from.
    pub seed: u64,
    /// Which profile.
    pub profile: Profile,
    /// The cases that will run.
    pub cases: &'a [Case],
    /// Further images that must be ready.
    pub images: &'a [ImageName],
    /// A scenario file of the user's.
    pub scenario_file: Option<PathBuf>,
    /// Keep what passing tests leave.
    pub keep: bool,
    /// What of it other machines do.
    pub sharing: Sharing,
    /// How guests shall execute.
    pub wish: Wish,
}

/// Where the time went, in seconds by part.
pub type Laps = BTreeMap<String, f64>;

/// Prepare everything, and say how long each part took.
///
/// # Errors
/// When the host lacks something, an image or a binary cannot be built, or no
/// guest boots.
pub fn prepare(home: &Home, order: &Order<'_>, progress: &dyn Progress) -> Result<(Testbed, Laps)> {
    let (bed, mut clock) = guests(home, order, progress)?;
    bases(&bed, order.cases, progress)?;
    clock.lap("base disks");
    Ok((bed, clock.laps))
}

/// As [`prepare`], for guests whose disks are there already.
///
/// # Errors
/// As there.
pub fn without_disks(home: &Home, order: &Order<'_>, progress: &dyn Progress) -> Result<Testbed> {
    guests(home, order, progress).map(|(bed, _)| bed)
}

fn guests(home: &Home, order: &Order<'_>, progress: &dyn Progress) -> Result<(Testbed, Clock)> {
    let mut clock = Clock::new();
    let brought = programs::payload_files(order.cases)?;
    ensure_host(&host::TO_BUILD_IMAGES, progress)?;
    clock.lap("host packages");
    let qemu = qemu(home, progress)?;
    clock.lap("qemu");
    let artifacts = binaries(home, progress)?;
    mounts::check(&artifacts, order.cases)?;
    clock.lap("guest binaries");
    let of_case = |case: &Case| {
        (
            case.guest.clone(),
            (case.image.clone(), case.mount.packages().to_vec()),
        )
    };
    let plain = |name: &ImageName| (name.clone(), (name.clone(), Vec::new()));
    let wanted: BTreeMap<ImageName, (ImageName, Vec<String>)> = (order.cases.iter().map(of_case))
        .chain(order.images.iter().map(plain))
        .collect();
    let mut images = BTreeMap::new();
    for (name, (of, packages)) in wanted {
        let image = image(home, &of, &packages, progress)?;
        images.insert(name, boot(home, &image, &artifacts)?);
    }
    clock.lap("images");
    let hashed = |file: &PayloadFile| -> Result<_> {
        Ok((file.guest.clone(), ContentHash::of_file(&file.host)?))
    };
    let brought_hashes = brought.iter().map(hashed).collect::<Result<_>>()?;
    let payload = payload_disk(home, &artifacts, brought)?;
    let first = images
        .values()
        .next()
        .context("a run needs at least one image")?;
    let accel = accel::choose(&qemu, &first.boot, order.wish, &home.cache)?;
    let text = format!("accelerator: {} ({})", accel.accel(), accel.reason);
    progress.tell(&Event::Notice { text });
    clock.lap("accelerator probe");
    let setup = Setup {
        seed: order.seed,
        profile: order.profile,
        cases: order.cases.iter().map(|case| case.name.clone()).collect(),
        scenario_file: order.scenario_file.clone(),
        keep: order.keep,
        sharing: order.sharing.clone(),
        accel,
        qemu,
        images,
        payload,
        brought: brought_hashes,
        artifacts,
    };
    let bed = Testbed::new(home.clone(), setup)?;
    templates(&bed, order.cases, progress)?;
    clock.lap("templates");
    Ok((bed, clock))
}

/// Install what the host lacks, and say so.
///
/// # Errors
/// When it may not be installed here; the one command to type is named.
pub fn ensure_host(needs: &[host::Need], progress: &dyn Progress) -> Result<()> {
    host::ensure(needs, &|event| tell_host(progress, &event))
}

/// Find the accelerator without preparing a run: QEMU, the guest binary and
/// one image, whose kernel is booted.
///
/// # Errors
/// As [`prepare`].
pub fn accelerator(
    home: &Home,
    wish: Wish,
    progress: &dyn Progress,
) -> Result<(Qemu, accel::Verdict)> {
    let qemu = qemu(home, progress)?;
    let artifacts = binaries(home, progress)?;
    let names = crate::scenario::image_names(&home.recipes)?;
    let name = names.first().context("there is no image recipe")?;
    let setup = boot(home, &image(home, name, &[], progress)?, &artifacts)?;
    let verdict = accel::choose(&qemu, &setup.boot, wish, &home.cache)?;
    Ok((qemu, verdict))
}

/// Find QEMU, or fetch a private one.
///
/// # Errors
/// When neither can be had.
pub fn qemu(home: &Home, progress: &dyn Progress) -> Result<Qemu> {
    let activity = || Activity::Tool {
        name: String::from("qemu"),
    };
    tools::qemu(home, &|event| match event {
        ToolEvent::FetchingQemu { host } => {
            let why = host.map_or(String::from("none on this host"), |old| {
                format!("the host's {old} is too old")
            });
            let text = format!("QEMU: {why}; unpacking a private one, the host is not touched");
            progress.tell(&Event::Notice { text });
            progress.tell(&Event::Began {
                activity: activity(),
                steps: Some(100),
            });
        }
        ToolEvent::Fetching(step) => {
            let (done, what) = match step {
                apt::Progress::Resolving => (0, "resolving"),
                apt::Progress::Downloading { done, total } => (percent(done, total), "downloading"),
                apt::Progress::Extracting => (100, "unpacking"),
            };
            progress.tell(&Event::Step {
                activity: activity(),
                done,
                what: what.to_owned(),
            });
        }
        ToolEvent::Host(event) => tell_host(progress, &event),
        ToolEvent::Fetched { took, .. } => {
            progress.tell(&Event::Ended {
                activity: activity(),
                outcome: Outcome::Done { took },
            });
        }
    })
}

fn percent(done: u64, total: u64) -> u64 {
    (done.saturating_mul(100))
        .checked_div(total)
        .unwrap_or(0)
        .min(100)
}

/// Show what is done to the host.
pub(crate) fn tell_host(progress: &dyn Progress, event: &HostEvent) {
    let text = match event {
        HostEvent::UpdatingLists => String::from("updating the host's package lists"),
        HostEvent::Installing(packages) => {
            format!("installing on this host: {}", packages.join(" "))
        }
    };
    progress.tell(&Event::Notice { text });
}

/// Run a piece of work as an activity.
pub(crate) fn during<T>(
    progress: &dyn Progress,
    activity: Activity,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    progress.tell(&Event::Began {
        activity: activity.clone(),
        steps: None,
    });
    let result = work();
    let outcome = match result {
        Ok(_) => Outcome::Done {
            took: start.elapsed(),
        },
        Err(_) => Outcome::Failed,
    };
    progress.tell(&Event::Ended { activity, outcome });
    result
}

fn binaries(home: &Home, progress: &dyn Progress) -> Result<Artifacts> {
    let activity = Activity::Binary {
        name: String::from("guest and filesystem"),
    };
    during(progress, activity.clone(), || {
        let mut done = 0;
        artifacts::build(home, &mut |line| {
            // Cargo's own words: one line for each crate that it compiles.
            if line.trim_start().starts_with("Compiling") {
                done += 1;
                let what = line.trim().to_owned();
                progress.tell(&Event::Step {
                    activity: activity.clone(),
                    done,
                    what,
                });
            }
        })
    })
}

/// Build an image, with these packages besides its own, if it is missing.
///
/// # Errors
/// When the recipe is malformed or the archive cannot give what it asks for.
pub fn image(
    home: &Home,
    name: &ImageName,
    packages: &[String],
    progress: &dyn Progress,
) -> Result<Image> {
    let recipe = Recipe::load(&home.recipes, name.as_str())?.with_packages(packages)?;
    let name = &recipe.name;
    let activity = || Activity::Image {
        name: name.to_string(),
    };
    let began = std::cell::Cell::new(false);
    let step = |done, what: &str| {
        if !began.replace(true) {
            progress.tell(&Event::Began {
                activity: activity(),
                steps: Some(100),
            });
        }
        progress.tell(&Event::Step {
            activity: activity(),
            done,
            what: what.to_owned(),
        });
    };
    let built = image::ensure(home, &recipe, &|event| match event {
        BuildEvent::Host(event) => tell_host(progress, &event),
        BuildEvent::LockStale(why) => {
            let text = format!("image {name}: {why}; what is used now is recorded in the report");
            progress.tell(&Event::Warning { text });
        }
        BuildEvent::Resolving => step(0, "resolving"),
        BuildEvent::Downloading { done, total } => step(percent(done, total) / 2, "downloading"),
        BuildEvent::Extracting => step(50, "unpacking"),
        BuildEvent::Trimming => step(70, "trimming"),
        BuildEvent::MakingFs => step(85, "making the root disk"),
        BuildEvent::Done { took } => {
            progress.tell(&Event::Ended {
                activity: activity(),
                outcome: Outcome::Done { took },
            });
        }
    });
    if built.is_err() && began.get() {
        progress.tell(&Event::Ended {
            activity: activity(),
            outcome: Outcome::Failed,
        });
    }
    built
}

/// What a guest of an image boots.
fn boot(home: &Home, image: &Image, artifacts: &Artifacts) -> Result<ImageSetup> {
    let initramfs = initramfs::build(home, image, &artifacts.guest.path, &[])?;
    let manifest = &image.manifest;
    let words = vec![
        format!("plugpull.build={}", artifacts.guest.hash.short()),
        format!("plugpull.postgres={}", manifest.postgres_bin),
    ];
    let root = &image.root_img;
    let size = std::fs::metadata(root)
        .with_context(|| format!("read the size of {}", root.display()))?
        .len();
    // The root disk and the kernel follow from the image's directory, which is
    // named by the hash of all that went into it.
    let content = vec![
        image.dir.display().to_string(),
        ContentHash::of_file(&initramfs)?.to_string(),
    ];
    Ok(ImageSetup {
        boot: Payload {
            kernel: image.vmlinuz.clone(),
            initramfs,
            words,
        },
        root: root.clone(),
        root_bytes: size,
        kernel: manifest.kernel_release.clone(),
        packages_hash: manifest.packages_hash.to_string(),
        as_locked: manifest.lock_not_kept.is_none(),
        content,
    })
}

fn payload_disk(home: &Home, artifacts: &Artifacts, brought: Vec<PayloadFile>) -> Result<PathBuf> {
    let file = |binary: &artifacts::Binary, name: &str| PayloadFile {
        host: binary.path.clone(),
        guest: PathBuf::from(name),
        mode: 0o755,
    };
    let mut files = vec![
        file(&artifacts.fs, "plugpull-fs"),
        file(&artifacts.fs_mutants, "plugpull-fs-mutants"),
        file(&artifacts.conformance, "plugpull-conformance"),
        file(&artifacts.fsx, "fsx"),
        file(&artifacts.stores, "plugpull-stores"),
    ];
    files.extend(brought);
    payload::build(home, &files)
}

fn templates(bed: &Testbed, cases: &[Case], progress: &dyn Progress) -> Result<()> {
    let mut seen = BTreeSet::new();
    for case in cases {
        let disk = case.scenario.disk;
        let name = format!("{} {} {}", case.guest, disk.size, disk.bus);
        if seen.insert((name.clone(), disk.unit)) && !bed.has_template(&case.guest, disk)? {
            during(progress, Activity::Template { name }, || {
                bed.template(&case.guest, disk).map(drop)
            })?;
        }
    }
    Ok(())
}

/// Make the base disks, as many at once as there are slots for guests.
fn bases(bed: &Testbed, cases: &[Case], progress: &dyn Progress) -> Result<()> {
    let mut missing = BTreeMap::new();
    for case in cases {
        for kind in kinds(&case.story) {
            let wanted = Wanted {
                image: &case.guest,
                lower: &case.lower,
                disk: case.scenario.disk,
                kind,
            };
            if !Base::exists(bed, wanted)? {
                let name = format!("{} {} {}", case.guest, case.lower.name, kind.name());
                missing.insert(
                    (name, case.scenario.disk.size.0, case.scenario.disk.unit),
                    wanted,
                );
            }
        }
    }
    let work = std::sync::Mutex::new(missing.into_iter());
    let next = || {
        work.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .next()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..bed.guests_at_once())
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some(((name, ..), wanted)) = next() {
                        during(progress, Activity::Base { name }, || {
                            Base::ensure(bed, wanted).map(drop)
                        })?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// The base disks that a story starts from.
fn kinds(story: &Story) -> Vec<Kind> {
    match story {
        Story::Initdb => vec![Kind::Empty, PLAIN_CLUSTER],
        Story::Load(_) => vec![PLAIN_CLUSTER],
        Story::Flakey(connections)
        | Story::PowerCut(Cuttable::PostgresLedger(LedgerLoad { connections, .. }), _) => {
            vec![Kind::Cluster {
                connections: connections.0.get(),
            }]
        }
        Story::Writers(_)
        | Story::Distribution(_)
        | Story::Conformance(_)
        | Story::NamedChecks
        | Story::PowerCut(..)
        | Story::Program(_) => {
            vec![Kind::Empty]
        }
    }
}

#[derive(Debug)]
struct Clock {
    since: Instant,
    laps: Laps,
}

impl Clock {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            laps: Laps::new(),
        }
    }

    fn lap(&mut self, name: &str) {
        *self.laps.entry(format!("prepare: {name}")).or_default() +=
            self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
    }
}
