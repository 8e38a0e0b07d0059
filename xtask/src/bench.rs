//! `bench`: prepares what is measured, prints the table, writes the JSON.

use std::{collections::BTreeSet, fs::File, io::Write as _, num::NonZeroU32};

use anyhow::{Context, Result, bail};
use plugpull_lab::{
    bench::{self, Sheet, Stage},
    prepare::{self, Order},
    progress::{self, Progress},
    rundir::RunDir,
    scenario::{Case, Fs, ImageName, Named, Profile, image_names},
    select::{Filter, Selection, Shard},
    sharing::Sharing,
};
use plugpull_vm::{accel::Wish, cache::Home, image::Recipe, process::enter_private_mounts};
use serde::Serialize;

use crate::{
    commands::{Exit, Mistake},
    options::{Bench, BenchFs, BenchStates, BenchWhat},
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
    if let BenchWhat::Fs(args) = &args.what {
        let results = measure_fs(&home, args, &*progress)?;
        return show(&bench::fs::table(&results), &results, json);
    }
    let sheet = measure(&home, &args.what, &*progress)?;
    show(&bench::table(&sheet), &sheet, json)
}

fn show(table: &str, figures: &impl Serialize, json: Option<File>) -> Result<Exit> {
    test::say(table)?;
    if let Some(mut file) = json {
        serde_json::to_writer_pretty(&mut file, figures).context("write the JSON")?;
        writeln!(file).context("write the JSON")?;
    }
    Ok(Exit::Pass)
}

/// No guests: programs of the host, in a run's directory that is removed.
fn measure_fs(home: &Home, args: &BenchFs, progress: &dyn Progress) -> Result<bench::fs::Results> {
    // First of all: whatever is started from here on sees the mounts.
    enter_private_mounts()?;
    test::tidy(home, progress)?;
    let programs = bench::fs::Programs::find(home, progress)?;
    let dir = RunDir::create_aside(&home.state)?;
    let results = bench::fs::fs(
        &bench::fs::Order {
            lines: filters(&args.lines),
            servers: filters(&args.servers),
            rounds: args.rounds,
            amount: match args.quick {
                true => bench::fs::Amount::QUICK,
                false => bench::fs::Amount::FULL,
            },
            walk: args.walk,
            lower: args.lower.as_deref(),
            dir: dir.path(),
            progress,
        },
        &programs,
    );
    dir.remove()?;
    results
}

fn filters(texts: &[String]) -> Vec<Filter> {
    texts.iter().map(Filter::new).collect()
}

fn measure(home: &Home, what: &BenchWhat, progress: &dyn Progress) -> Result<Sheet> {
    match what {
        BenchWhat::Fs(_) => bail!("no guests are needed for this"),
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
        BenchWhat::States(args) => measure_states(home, args, progress),
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
                recorded: BTreeSet::new(),
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

fn measure_states(home: &Home, args: &BenchStates, progress: &dyn Progress) -> Result<Sheet> {
    let lowers = args.lower.iter().map(|name| {
        Fs::from_name(name).ok_or_else(|| Mistake::text(format!("no filesystem is called {name}")))
    });
    let states = bench::States {
        image: known(home, &args.image)?,
        lowers: lowers.collect::<Result<_, _>>()?,
        states: args.states,
        postgres: NonZeroU32::new(args.postgres),
        again: args.again,
        rounds: args.rounds,
    };
    let cases = states.cases(home).map_err(Mistake::new)?;
    let order = order(Profile::Smoke, &[], &cases);
    on_stage(home, &order, progress, |stage| {
        bench::states(stage, &states)
    })
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
        sharing: Sharing::default(),
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
