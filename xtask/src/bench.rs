//! `bench`: prepares what is measured, prints the table, writes the JSON.

use std::{fs::File, io::Write as _};

use anyhow::{Context, Result};
use plugpull_lab::{
    bench::{self, Sheet, Stage},
    prepare::{self, Order},
    progress::{self, Progress},
    scenario::{Case, ImageName, Profile, image_names},
    select::{Filter, Selection, Shard},
};
use plugpull_vm::{accel::Wish, cache::Home, image::Recipe};

use crate::{
    commands::{Exit, Mistake},
    options::{Bench, BenchWhat},
    test::{self, Run},
};

/// Measure, and show it. Goals that are missed are shown too; they fail
/// nothing.
pub(crate) fn run(args: &Bench) -> Result<Exit> {
    let home = Home::find()?;
    // Found out now and not after an hour of measuring.
    let json = match &args.json {
        Some(path) => Some(
            File::create(path)
                .map_err(|error| Mistake::text(format!("write {}: {error}", path.display())))?,
        ),
        None => None,
    };
    let progress = progress::on_stderr();
    let sheet = measure(&home, &args.what, &*progress)?;
    print!("{}", bench::table(&sheet));
    if let Some(mut file) = json {
        serde_json::to_writer_pretty(&mut file, &sheet).context("write the JSON")?;
        writeln!(file).context("write the JSON")?;
    }
    Ok(Exit::Pass)
}

fn measure(home: &Home, what: &BenchWhat, progress: &dyn Progress) -> Result<Sheet> {
    match what {
        BenchWhat::Vm { rounds, image } => {
            let images = match image {
                Some(name) => vec![known(home, name)?],
                None => image_names(&home.recipes).context("list the images")?,
            };
            let order = order(Profile::Smoke, &images, &[]);
            on_stage(home, &order, progress, |stage| {
                bench::vm(stage, &images, *rounds)
            })
        }
        BenchWhat::Disk { rounds, image } => {
            let image = known(home, image)?;
            let order = order(Profile::Smoke, std::slice::from_ref(&image), &[]);
            on_stage(home, &order, progress, |stage| {
                bench::disk(stage, &image, *rounds)
            })
        }
        BenchWhat::Controls {
            filter,
            profile,
            runs,
        } => {
            let profile = test::profile(*profile);
            let selection = Selection {
                filter: filter.as_deref().map(Filter::new),
                image: None,
                shard: Shard::ALL,
            };
            let cases = selection
                .of(bench::cases(home, profile)?)
                .map_err(Mistake::new)?;
            let order = order(profile, &[], &cases);
            on_stage(home, &order, progress, |stage| {
                bench::controls(stage, &cases, *runs)
            })
        }
    }
}

/// The image of this name, or a mistake of the caller's.
fn known(home: &Home, name: &str) -> Result<ImageName> {
    let recipe = Recipe::load(&home.recipes, name)?;
    Ok(ImageName::new(recipe.name.as_str()))
}

fn order<'a>(profile: Profile, images: &'a [ImageName], cases: &'a [Case]) -> Order<'a> {
    Order {
        seed: 0,
        profile,
        cases,
        images,
        scenario_file: None,
        keep: false,
        wish: Wish::Auto,
    }
}

/// Prepare as for a run, and measure in a run's directory, so that what a
/// killed bench leaves is tidied up like everything else.
fn on_stage(
    home: &Home,
    order: &Order<'_>,
    progress: &dyn Progress,
    measure: impl FnOnce(Stage<'_>) -> Result<Sheet>,
) -> Result<Sheet> {
    let run = Run::begin(home, progress)?;
    let (bed, _laps) = prepare::prepare(home, order, progress)?;
    measure(Stage {
        bed: &bed,
        dir: run.dir.path(),
        progress,
    })
}
