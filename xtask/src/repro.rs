//! `repro`: one failing crash state of a run, seen again without the run; and
//! what `shell` needs to open it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use plugpull_lab::{
    capsule::{self, BadCapsule, State, Unpacked, Wanted},
    prepare::{self, Order},
    progress::{self, Event, Progress},
    report::Verdict,
    repro::{self, Shown},
    rundir::RunDir,
    runner,
    scenario::Case,
    sharing::Sharing,
    testbed::Testbed,
};
use plugpull_vm::{accel::Wish, cache::Home};

use crate::{
    commands::Exit,
    options::{self, Failure},
    test,
};

/// A longer wait for other guests is told.
const WORTH_A_WORD: Duration = Duration::from_millis(100);

/// A failing state, ready to be looked at.
pub(crate) struct Ready {
    pub(crate) bed: Testbed,
    pub(crate) case: Case,
    pub(crate) capsule: Unpacked,
    pub(crate) state: State,
    /// Where it was taken apart, and where guests' logs go.
    pub(crate) dir: RunDir,
}

/// Look at a state again and say what it comes to.
pub(crate) fn run(args: &options::Repro) -> Result<Exit> {
    let start = Instant::now();
    let progress = progress::on_stderr();
    let ready = Ready::new(&args.failure, test::wish(args.accel), &*progress)?;
    if args.keep {
        ready.dir.keep()?;
    }
    let path = ready.dir.path();
    let prepared = start.elapsed();
    let again = runner::again(&ready.bed, &ready.case, &ready.capsule, &ready.state, path);
    let again = match again {
        Ok(again) => again,
        // Nothing of a guest's is left of it.
        Err(error) if error.is::<BadCapsule>() => {
            ready.dir.remove()?;
            return Err(error);
        }
        Err(error) => {
            let left = format!(
                "show {} again; its guest's logs: {}",
                ready.state.id,
                path.display()
            );
            return Err(error.context(left));
        }
    };
    let shown = Shown {
        manifest: ready.capsule.manifest(),
        state: &ready.state,
        case: &ready.case,
        own: args.failure.scenario.is_none(),
        again: &again,
    };
    let (all, waited) = (start.elapsed(), again.waited);
    let mut text = format!(
        "shown in {:.1} s, of which {:.1} to get ready",
        (all - waited).as_secs_f64(),
        prepared.as_secs_f64()
    );
    if waited > WORTH_A_WORD {
        text.push_str(&format!(
            "; before, {:.1} s of waiting until other guests ended",
            waited.as_secs_f64()
        ));
    }
    progress.tell(&Event::Notice { text });
    test::say(&shown.text())?;
    if args.keep {
        let image = path.join("state.img");
        let state = ready.capsule.crash_state(&ready.state)?;
        state.view.export_sparse(&image)?;
        test::say(&format!("kept: {}\n", image.display()))?;
    } else {
        ready.dir.remove()?;
    }
    Ok(match shown.verdict() {
        Verdict::Pass => Exit::Pass,
        Verdict::Fail => Exit::Fail,
        Verdict::Infra => Exit::Infra,
    })
}

impl Ready {
    /// Find the capsule, take it apart, and prepare for a guest with its state.
    pub(crate) fn new(what: &Failure, wish: Wish, progress: &dyn Progress) -> Result<Self> {
        let home = Home::find()?;
        let (found, named) = capsule::find(&Wanted::of(&what.failure), &home.runs)?;
        let state = found.state(what.state.as_deref().or(named.as_deref()))?;
        say_which(&found, &state, progress);
        // Not before it is open: it may be in a run that is forgotten now.
        test::tidy(&home, progress)?;
        let dir = RunDir::create_aside(&home.state)?;
        match Self::unpacked(&home, what, found, state, wish, dir.path(), progress) {
            Ok((bed, case, capsule, state)) => Ok(Self {
                bed,
                case,
                capsule,
                state,
                dir,
            }),
            Err(error) => {
                dir.remove()?;
                Err(error)
            }
        }
    }

    fn unpacked(
        home: &Home,
        what: &Failure,
        found: capsule::Capsule,
        state: State,
        wish: Wish,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<(Testbed, Case, Unpacked, State)> {
        let capsule = found.unpack(dir)?;
        let case = repro::case(&capsule, home, what.scenario.as_deref())?;
        let manifest = capsule.manifest();
        let order = Order {
            seed: manifest.seed,
            profile: manifest.profile,
            cases: std::slice::from_ref(&case),
            images: &[],
            scenario_file: None,
            keep: false,
            sharing: Sharing::default(),
            wish,
        };
        let bed = prepare::without_disks(home, &order, progress)?;
        for text in repro::differences(manifest, &case, bed.setup()) {
            progress.tell(&Event::Warning { text });
        }
        Ok((bed, case, capsule, state))
    }
}

fn say_which(capsule: &capsule::Capsule, state: &State, progress: &dyn Progress) {
    let manifest = capsule.manifest();
    let others = match manifest.states.len() - 1 {
        0 => String::new(),
        1 => String::from(", one of 2 states in it"),
        more => format!(", one of {} states in it", more + 1),
    };
    let text = format!(
        "{} of {}{others}",
        capsule::id(&manifest.case, &state.id),
        capsule.path().display()
    );
    progress.tell(&Event::Notice { text });
}
