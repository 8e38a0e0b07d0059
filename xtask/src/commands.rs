//! The commands that are not tests, and how every command ends.

use std::{process::ExitCode, process::ExitStatus};

use anyhow::Result;
use plugpull_lab::{
    capsule, mounts, prepare,
    progress::{self, Event},
    report::{Unfit, Verdict},
    scenario::{BadFile, ImageName},
};
use plugpull_vm::{
    accel::Wish,
    cache::Home,
    host,
    image::{self, Recipe},
};

use crate::options::{self, ImageAction};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Pass,
    Fail,
    Mistake,
    Infra,
    /// A program's own code, for `shell -c`.
    Code(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Pass => 0,
            Exit::Fail => 1,
            Exit::Mistake => 2,
            Exit::Infra => 69,
            Exit::Code(code) => code,
        })
    }
}

impl Exit {
    /// The class of an error: the user's mistake, or something that this host
    /// lacks or could not do.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let mistaken = |cause: &(dyn std::error::Error + 'static)| {
            cause.is::<Mistake>()
                || cause.is::<BadFile>()
                || cause.is::<Unfit>()
                || cause.is::<mounts::Refused>()
                || cause.is::<capsule::BadCapsule>()
                || cause.is::<capsule::NoSuchState>()
                || cause.is::<image::Problem>()
                || cause.is::<image::UnknownImage>()
        };
        if error.chain().any(mistaken) {
            Self::Mistake
        } else if error.chain().any(|cause| cause.is::<Failed>()) {
            Self::Fail
        } else {
            Self::Infra
        }
    }

    /// The class of a run: its verdict, unless nextest saw tests fail that
    /// write no verdict.
    pub(crate) fn of_run(verdict: Verdict, nextest: ExitStatus) -> Self {
        match verdict {
            Verdict::Pass if !nextest.success() => Self::Fail,
            Verdict::Pass => Self::Pass,
            Verdict::Fail => Self::Fail,
            Verdict::Infra => Self::Infra,
        }
    }
}

/// A mistake in the call or in a file that the user wrote.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Mistake(String);

impl Mistake {
    pub(crate) fn new(error: impl std::fmt::Display) -> Self {
        Self(format!("{error:#}"))
    }

    pub(crate) fn text(text: String) -> Self {
        Self(text)
    }
}

/// The code under test, or the code of this project, is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(pub(crate) String);

/// List, build, update or clean images.
pub(crate) fn image(args: &options::Image) -> Result<Exit> {
    let home = Home::find()?;
    let progress = progress::on_stderr();
    match &args.action {
        ImageAction::List => list_images(&home)?,
        ImageAction::Build { names } => {
            prepare::ensure_host(&host::TO_BUILD_IMAGES, &*progress)?;
            for recipe in recipes(&home, names)? {
                let name = ImageName::new(recipe.name.as_str());
                let image = prepare::image(&home, &name, &[], &*progress)?;
                println!(
                    "{name}: kernel {}, {}",
                    image.kernel_release(),
                    image.dir.display()
                );
            }
        }
        ImageAction::Update { names } => {
            prepare::ensure_host(&host::TO_BUILD_IMAGES, &*progress)?;
            for recipe in recipes(&home, names)? {
                let changes = image::update(&home, &recipe, &|_| {})?;
                println!("{}:", recipe.name.as_str());
                for (package, old, new) in &changes.changed {
                    println!("  {package} {old} → {new}");
                }
                for (package, version) in &changes.added {
                    println!("  + {package} {version}");
                }
                for (package, version) in &changes.removed {
                    println!("  - {package} {version}");
                }
            }
        }
        ImageAction::Clean { names } => {
            let removed = match names.is_empty() {
                true => image::clean(&home, None)?,
                false => recipes(&home, names)?
                    .iter()
                    .map(|recipe| image::clean(&home, Some(&recipe.name)))
                    .sum::<Result<usize>>()?,
            };
            progress.tell(&Event::Notice {
                text: format!("{removed} built images removed"),
            });
        }
    }
    Ok(Exit::Pass)
}

fn recipes(home: &Home, names: &[String]) -> Result<Vec<Recipe>> {
    let names = match names.is_empty() {
        true => image::names(&home.recipes)?
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect(),
        false => names.to_vec(),
    };
    names
        .iter()
        .map(|name| Recipe::load(&home.recipes, name))
        .collect()
}

fn list_images(home: &Home) -> Result<()> {
    for listed in image::list(home)? {
        let state = match (&listed.built, &listed.lock) {
            (Some(image), _) => format!("built, kernel {}", image.kernel_release()),
            (None, Some(_)) => String::from("locked, not built"),
            (None, None) => String::from("no lock yet, not built"),
        };
        println!(
            "{:20} {}\n{:20} {state}",
            listed.recipe.name.as_str(),
            listed.recipe.about,
            ""
        );
    }
    Ok(())
}

/// Say what this host can do.
pub(crate) fn doctor(args: &options::Doctor) -> Result<Exit> {
    let home = Home::find()?;
    let progress = progress::on_stderr();
    let facts = host::facts(&home.state)?;
    println!("kernel        {}", facts.kernel);
    println!("processors    {}", facts.cores);
    println!(
        "memory        {:.1} GiB available",
        facts.memory_available as f64 / GIB
    );
    println!(
        "disk space    {:.1} GiB free for target/plugpull",
        facts.disk_free as f64 / GIB
    );
    println!("/dev/fuse     {}", device(&facts.fuse));
    println!(
        "/dev/kvm      {} (whether it works takes a boot to know)",
        device(&facts.kvm)
    );
    let missing = host::missing(&host::TO_BUILD_IMAGES);
    for need in &missing {
        println!(
            "missing       {} (installed by the first run as root)",
            need.what
        );
    }
    if args.no_probe {
        println!("accelerator   not probed");
        return Ok(Exit::Pass);
    }
    prepare::ensure_host(&host::TO_BUILD_IMAGES, &*progress)?;
    let (qemu, verdict) = prepare::accelerator(&home, Wish::Auto, &*progress)?;
    println!("qemu          {}", qemu.version);
    println!("accelerator   {}: {}", verdict.accel(), verdict.reason);
    println!(
        "speed         a kernel boots to init in {:.1} s; deadlines are multiplied by {:.1}",
        verdict.probe_ms as f64 / 1000.0,
        verdict.slowness()
    );
    Ok(Exit::Pass)
}

const GIB: f64 = (1_u64 << 30) as f64;

fn device(device: &host::Device) -> String {
    match device {
        host::Device::Opens => String::from("opens"),
        host::Device::Absent => String::from("is not there"),
        host::Device::Refuses(why) => format!("does not open: {why}"),
    }
}
