//! `test-vm` and `test`: choose, prepare, hand over to nextest, report.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use plugpull_lab::{
    prepare::{self, Laps, Order},
    progress::{self, Event, Progress},
    report::{self, ImageUsed, Look, Report, SCHEMA, Verdict, html},
    room,
    rundir::{self, RunDir},
    scenario::{Case, Profile},
    select::{Filter, Selection, Shard},
    sharing::{self, Sharing},
    suite::{self, Test},
    testbed::Setup,
};
use plugpull_vm::{accel::Wish, cache::Home, host};

use crate::{
    ci,
    commands::{Exit, Failed, Mistake},
    nextest,
    options::{self, TestVm},
    report as written, share,
};

/// `test` makes the same choices each time unless it is told otherwise: what CI
/// says should follow from the change. New seeds are for `test-vm` and nightly
/// runs.
const SEED_OF_TEST: u64 = 1;

/// How many runs' directories are kept beside those that were asked to be.
const RUNS_KEPT: usize = 10;

/// Run scenarios in guests, print the verdict table.
pub(crate) fn test_vm(args: &TestVm) -> Result<Exit> {
    let home = Home::find()?;
    let profile = profile(args.profile);
    let (sharing, seed_of_recordings) = share::sharing(args, profile)?;
    let chosen = choose(&home, args, profile, &sharing)?;
    if args.list {
        let names: String = chosen
            .iter()
            .map(|case| format!("{}\n", case.name))
            .collect();
        return say(&names).map(|()| Exit::Pass);
    }
    let progress = progress::on_stderr();
    if chosen.is_empty() {
        // Shards are dealt by name; one may get nothing, and is a part of the whole all the same.
        say("no case falls to this shard\n")?;
        return share::nothing(&home, sharing.shard, seed(args.seed), profile, &*progress);
    }
    let start = Instant::now();
    room::warn(&[&home.state, &home.cache], room::OF_A_RUN, &*progress);
    let run = Run::begin(&home, &*progress)?;
    if args.keep || args.record_only {
        run.dir.keep().context("mark the run as kept")?;
    }
    let order = Order {
        seed: seed(seed_of_recordings.or(args.seed)),
        profile,
        cases: &chosen,
        images: &[],
        scenario_file: args
            .scenario
            .as_deref()
            .map(std::path::absolute)
            .transpose()?,
        keep: args.keep,
        sharing: sharing.clone(),
        wish: wish(args.accel),
    };
    if !sharing.shard.is_all() && seed_of_recordings.or(args.seed).is_none() {
        let text = "without --seed each shard has a seed of its own, and they cannot be merged";
        progress.tell(&Event::Warning { text: text.into() });
    }
    let laps = run.prepare(&home, &order, &*progress)?;
    let outcome = nextest::run(&home, &run.dir, nextest::Scope::Vm, profile, args.bless)?;
    let report = run.report(&chosen, laps, sharing.shard, start)?;
    let table = report::table(&report, Look::of(&std::io::stdout()));
    say(&format!("{table}{}", written::places(run.dir.path())))?;
    let looked = match profile {
        Profile::Smoke => Ok(()),
        Profile::Full | Profile::Nightly => written::look(run.dir.path(), &*progress),
    };
    if args.record_only {
        say(&share::how_to_explore(run.dir.path(), profile))?;
    }
    match (Exit::of_run(report.verdict, outcome), looked) {
        (Exit::Pass, Err(error)) => Err(error),
        (exit, looked) => {
            // What the run itself came to is said first.
            if let Err(error) = looked {
                let text = format!("{error:#}");
                progress.tell(&Event::Warning { text });
            }
            Ok(exit)
        }
    }
}

/// Lint, then everything in one nextest run, whose summary is the last thing
/// printed.
pub(crate) fn test(args: &options::Test) -> Result<Exit> {
    let home = Home::find()?;
    let progress = progress::on_stderr();
    let scratch = std::env::temp_dir();
    room::warn(
        &[&home.state, &scratch],
        room::OF_THE_WHOLE_SUITE,
        &*progress,
    );
    ci::lint(&home)?;
    prepare::ensure_host(&host::TO_TEST, &*progress)?;
    let start = Instant::now();
    let chosen = choose(
        &home,
        &TestVm::all_of(options::Profile::Smoke),
        Profile::Smoke,
        &Sharing::default(),
    )?;
    let run = Run::begin(&home, &*progress)?;
    let order = Order {
        seed: args.seed.unwrap_or(SEED_OF_TEST),
        profile: Profile::Smoke,
        cases: &chosen,
        images: &[],
        scenario_file: None,
        keep: false,
        sharing: Sharing::default(),
        wish: wish(args.accel),
    };
    let laps = run.prepare(&home, &order, &*progress)?;
    let place = run.dir.path().join(html::FILE);
    progress.tell(&Event::Notice {
        text: format!("the report will be {}", place.display()),
    });
    let nextest = |scope| nextest::run(&home, &run.dir, scope, Profile::Smoke, false);
    let controls = nextest(nextest::Scope::FsControls)?;
    if !controls.success() {
        return Err(Failed(String::from(
            "a mutant of the filesystem was not caught on the host, or a model of its tables failed",
        ))
        .into());
    }
    let outcome = nextest(nextest::Scope::Workspace)?;
    let report = run.report(&chosen, laps, Shard::ALL, start)?;
    let exit = Exit::of_run(report.verdict, outcome);
    if exit != Exit::Pass {
        say(&report::table(&report, Look::of(&std::io::stdout())))?;
    }
    Ok(exit)
}

/// Print to standard output. A reader that has gone, as `head` does, is no
/// error.
pub(crate) fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

/// The cases that a call asks for.
fn choose(home: &Home, args: &TestVm, profile: Profile, sharing: &Sharing) -> Result<Vec<Case>> {
    if let Some(file) = &args.scenario
        && std::path::absolute(file)?.to_str().is_none()
    {
        // The tests find it by what the run's directory says, which is JSON.
        return Err(Mistake::text(format!(
            "the path of {} is not UTF-8, so it cannot be named to the tests; run it from \
             another directory",
            file.display()
        ))
        .into());
    }
    let loaded = suite::load(home, args.scenario.as_deref()).map_err(|error| {
        if args.scenario.is_some() {
            Mistake::new(error).into()
        } else {
            error
        }
    })?;
    let mut cases = Vec::new();
    let mut bad = Vec::new();
    for test in suite::tests(loaded, profile) {
        match test {
            Test::Case(case) => cases.push(*case),
            Test::Malformed { bad: file, .. } => bad.push(file.to_string()),
        }
    }
    if !bad.is_empty() {
        return Err(Mistake::text(bad.join("\n\n")).into());
    }
    if cases.is_empty() {
        return Err(Mistake::text(format!("no scenario belongs to the profile {profile}")).into());
    }
    let selection = Selection {
        filter: args.filter.as_deref().map(Filter::new),
        image: args.image.clone(),
        shard: sharing.shard,
        recorded: sharing.recordings.keys().cloned().collect(),
    };
    let mut chosen = selection.of(cases).map_err(Mistake::new)?;
    if sharing.record_only {
        chosen.retain(sharing::can_be_shared);
        if chosen.is_empty() && sharing.shard.is_all() {
            let text = "none of these cases has its power cut everywhere, so there is nothing to \
                        record for others to explore";
            return Err(Mistake::text(text.into()).into());
        }
    }
    Ok(chosen)
}

/// Remove what runs that were killed have left, and forget old ones.
pub(crate) fn tidy(home: &Home, progress: &dyn Progress) -> Result<()> {
    for swept in rundir::sweep(&home.state)? {
        for removed in &swept.removed {
            progress.tell(&Event::Notice {
                text: format!("left by the run {}: removed {removed}", swept.run),
            });
        }
        for stayed in &swept.stayed {
            progress.tell(&Event::Warning {
                text: format!("left by the run {}: {stayed}", swept.run),
            });
        }
    }
    rundir::prune(&home.state, RUNS_KEPT)?;
    Ok(())
}

/// A run's directory and what is reported of it.
pub(crate) struct Run {
    pub(crate) dir: RunDir,
}

impl Run {
    /// Tidy up after runs that were killed, then begin a new one.
    pub(crate) fn begin(home: &Home, progress: &dyn Progress) -> Result<Self> {
        tidy(home, progress)?;
        Ok(Self {
            dir: RunDir::create(&home.state)?,
        })
    }

    pub(crate) fn prepare(
        &self,
        home: &Home,
        order: &Order<'_>,
        progress: &dyn Progress,
    ) -> Result<Laps> {
        let text = format!(
            "seed {}; {} cases of the profile {}",
            order.seed,
            order.cases.len(),
            order.profile
        );
        progress.tell(&Event::Notice { text });
        let (bed, laps) = prepare::prepare(home, order, progress)?;
        bed.setup().write(self.dir.path())?;
        Ok(laps)
    }

    fn report(&self, cases: &[Case], phases: Laps, shard: Shard, start: Instant) -> Result<Report> {
        let setup = Setup::read(self.dir.path())?;
        let planned = |case| report::Planned::from(case).shared(&setup.sharing);
        let planned: Vec<_> = cases.iter().map(planned).collect();
        let scenarios = self.dir.join(&planned);
        let report = Report {
            schema: SCHEMA,
            seed: setup.seed,
            profile: setup.profile,
            shard: shard.to_string(),
            shards: Vec::new(),
            missing: Vec::new(),
            accel: setup.accel.accel().to_string(),
            qemu: setup.qemu.version.clone(),
            images: setup
                .images
                .iter()
                .map(|(name, image)| used(name.as_str(), image))
                .collect(),
            verdict: Verdict::Infra,
            seconds: start.elapsed().as_secs_f64(),
            phases,
            scenarios,
        }
        .finish();
        written::write(&self.dir, &report)?;
        Ok(report)
    }
}

fn used(name: &str, image: &plugpull_lab::testbed::ImageSetup) -> ImageUsed {
    ImageUsed {
        name: name.to_owned(),
        kernel: image.kernel.clone(),
        packages_hash: image.packages_hash.clone(),
        as_locked: image.as_locked,
    }
}

pub(crate) fn profile(profile: options::Profile) -> Profile {
    match profile {
        options::Profile::Smoke => Profile::Smoke,
        options::Profile::Full => Profile::Full,
        options::Profile::Nightly => Profile::Nightly,
    }
}

pub(crate) fn wish(accel: options::Accel) -> Wish {
    match accel {
        options::Accel::Auto => Wish::Auto,
        options::Accel::Kvm => Wish::Kvm,
        options::Accel::Tcg => Wish::Tcg,
    }
}

/// The seed that was asked for, or a new one from the clock: the one place
/// where a run's randomness begins, and it is printed.
pub(crate) fn seed(asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap_or(Duration::ZERO).as_nanos() as u64 % 1_000_000_007
    })
}
