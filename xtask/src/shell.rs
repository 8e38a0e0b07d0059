//! `shell`: a guest with the filesystem mounted, or with a failing disk, for a
//! person or a script.

use std::{
    io::{IsTerminal, Read, Write},
    os::fd::AsFd,
};

use anyhow::{Context, Result};
use plugpull_lab::{
    prepare::{self, Order},
    progress::{self, Event, Progress},
    rundir::RunDir,
    runner,
    scenario::{Fs, ImageName, Named, Profile, nearest},
    sharing::Sharing,
    shell::{Person, Shell},
};
use plugpull_vm::{cache::Home, image::Recipe};

use crate::{
    commands::{Exit, Mistake},
    options,
    repro::Ready,
    signals, test,
};

/// Start a guest, run what was asked for, end the guest.
pub(crate) fn run(args: &options::Shell) -> Result<Exit> {
    match &args.failure {
        Some(failure) => on_a_failure(args, failure),
        None => on_an_empty_disk(args),
    }
}

fn on_a_failure(args: &options::Shell, failure: &options::Failure) -> Result<Exit> {
    let script = script(args.command.as_deref())?;
    let progress = progress::on_stderr();
    let ready = Ready::new(failure, test::wish(args.accel), &*progress)?;
    let (dir, state) = (ready.dir.path(), &ready.state);
    let shell = runner::shell_on(&ready.bed, &ready.case, &ready.capsule, state, dir)?;
    let exit = serve(&shell, script, &ready.case.name.to_string(), progress)?;
    shell.close()?;
    ready.dir.remove()?;
    Ok(exit)
}

fn on_an_empty_disk(args: &options::Shell) -> Result<Exit> {
    let home = Home::find()?;
    let lower = lower(&args.lower)?;
    let image = ImageName::new(&args.image);
    Recipe::load(&home.recipes, image.as_str())?;
    // Before anything is prepared: a script that cannot be read costs no boot.
    let script = script(args.command.as_deref())?;
    let progress = progress::on_stderr();
    test::tidy(&home, &*progress)?;
    let dir = RunDir::create_aside(&home.state)?;
    let order = Order {
        seed: 0,
        profile: Profile::Smoke,
        cases: &[],
        images: std::slice::from_ref(&image),
        scenario_file: None,
        keep: false,
        sharing: Sharing::default(),
        wish: test::wish(args.accel),
    };
    let (bed, _) = prepare::prepare(&home, &order, &*progress)?;
    let shell = Shell::open(&bed, &image, lower, dir.path(), &*progress)?;
    let exit = serve(&shell, script, &format!("{image}, {lower}"), progress)?;
    shell.close()?;
    dir.remove()?;
    Ok(exit)
}

/// Run the script, or hand the shell to a person and say what it is.
fn serve(
    shell: &Shell<'_>,
    script: Option<String>,
    name: &str,
    progress: Box<dyn Progress>,
) -> Result<Exit> {
    let text = format!("{name}: {}", shell.about());
    match script {
        Some(script) => commands(shell, &script),
        None => {
            progress.tell(&Event::Notice { text });
            drop(progress);
            interact(shell)
        }
    }
}

fn lower(name: &str) -> Result<Fs> {
    Fs::from_name(name).ok_or_else(|| {
        let names = || Fs::ALL.iter().map(|fs| fs.name());
        let near = nearest(name, names())
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        let all = names().collect::<Vec<_>>().join(", ");
        Mistake::text(format!(
            "`{name}` is no lower filesystem: expected one of {all}{near}"
        ))
        .into()
    })
}

/// What is to be run, or `None` where a person will say.
fn script(command: Option<&str>) -> Result<Option<String>> {
    if let Some(command) = command {
        return Ok(Some(command.to_owned()));
    }
    let mut input = std::io::stdin();
    if input.is_terminal() {
        return Ok(None);
    }
    let mut script = String::new();
    input
        .read_to_string(&mut script)
        .map_err(|error| Mistake::text(format!("standard input is no script: {error}")))?;
    Ok(Some(script))
}

/// Run a script; its output and exit code become this command's.
fn commands(shell: &Shell<'_>, script: &str) -> Result<Exit> {
    let exited = shell.run(script)?;
    for (text, out) in [
        (&exited.stdout, &mut std::io::stdout() as &mut dyn Write),
        (&exited.stderr, &mut std::io::stderr()),
    ] {
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("write what the command said")?;
    }
    let kept = plugpull_lab::shell::KEPT_BYTES;
    if exited.stdout.len().max(exited.stderr.len()) >= kept {
        eprintln!(
            "note: only the last {} KiB of its output came back",
            kept >> 10
        );
    }
    // 128 + signal is the highest a shell gives.
    Ok(Exit::Code(u8::try_from(exited.code).unwrap_or(u8::MAX)))
}

fn interact(shell: &Shell<'_>) -> Result<Exit> {
    eprintln!("Ctrl-] or `exit` ends the session; the guest is powered off, its disk forgotten");
    let ended = signals::readable()?;
    let keyboard = std::io::stdin();
    shell.interact(Person {
        keyboard: keyboard.as_fd(),
        screen: Box::new(std::io::stdout()),
        ended: ended.as_fd(),
        term: std::env::var("TERM").unwrap_or_else(|_| String::from("dumb")),
    })?;
    eprintln!();
    Ok(Exit::Pass)
}
