//! Real processes: deadlines, groups, streams, and death with the parent.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};

use super::*;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

/// Whether the process exists and is not a zombie.
fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = stat
        .rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'));
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok()) && !zombie
}

fn ends_within(pid: i32, deadline: Duration) -> bool {
    let until = Instant::now() + deadline;
    while alive(pid) {
        if Instant::now() > until {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn output_and_input_larger_than_a_pipe() {
    let text = "line\n".repeat(100_000);
    let output = Cmd::new("cat").stdin(text.clone()).run(LONG).unwrap();
    assert_eq!(output.stdout_text(), text);
}

#[test]
fn failure_shows_command_line_status_and_stderr() {
    let error = Cmd::new("sh")
        .args(["-c", "echo it\\'s broken >&2; exit 3"])
        .env("A", "b c")
        .run(LONG)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        r"exit status: 3: A='b c' sh -c 'echo it\'\''s broken >&2; exit 3'
    it's broken"
    );
}

#[test]
fn missing_program_is_named() {
    let error = Cmd::new("no-such-program").arg("x").run(LONG).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(error.to_string(), "cannot start: no-such-program x");
}

#[test]
fn stderr_lines_arrive_one_by_one() {
    let mut lines = Vec::new();
    let script = r"printf 'one\ntwo\r10%%\rthree' >&2";
    Cmd::new("sh")
        .args(["-c", script])
        .run_with(LONG, &mut |line| lines.push(line.to_owned()))
        .unwrap();
    assert_eq!(lines, ["one", "two", "10%", "three"]);
}

#[test]
fn deadline_kills_the_whole_group() {
    let script = "sleep 1000 & echo $! >&2; wait";
    let started = Instant::now();
    let error = Cmd::new("sh")
        .args(["-c", script])
        .own_group()
        .run(SHORT)
        .unwrap_err();
    assert!(started.elapsed() < LONG);
    let RunError::Deadline { stderr, .. } = &error else {
        panic!("{error}")
    };
    let grandchild: i32 = String::from_utf8_lossy(stderr).trim().parse().unwrap();
    assert!(
        ends_within(grandchild, LONG),
        "sleep {grandchild} survived its group"
    );
}

#[test]
fn a_daemon_holding_the_pipe_does_not_hang_run() {
    let started = Instant::now();
    let output = Cmd::new("sh")
        .args(["-c", "sleep 1000 & echo $!"])
        .run(LONG)
        .unwrap();
    assert!(started.elapsed() < LONG);
    let daemon: i32 = output.stdout_text().trim().parse().unwrap();
    assert!(alive(daemon), "nobody asked for its death");
    Cmd::new("kill").arg(daemon.to_string()).run(LONG).unwrap();
}

#[test]
fn dropping_the_guard_kills_and_reaps() {
    let child = Cmd::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(child.pid()).unwrap();
    assert!(alive(pid));
    drop(child);
    assert!(!alive(pid));
}

#[test]
fn wait_times_out_and_leaves_the_process_alone() {
    let mut child = Cmd::new("sleep").arg("1000").spawn().unwrap();
    assert!(matches!(child.wait(SHORT), Err(RunError::Deadline { .. })));
    assert!(child.try_wait().unwrap().is_none());
    assert!(!child.kill().unwrap().success());
}

#[test]
fn a_spawned_process_outlives_the_thread_that_asked_for_it() {
    let asker = std::thread::spawn(|| Cmd::new("sleep").arg("1000").spawn().unwrap());
    let mut child = asker.join().unwrap();
    assert!(child.wait(SHORT).is_err(), "died with the asking thread");
}

/// Runs only as the child of the next test: spawns, says the pid, hangs.
#[test]
fn helper_parent_that_is_killed() {
    let Ok(path) = std::env::var("PLUGPULL_TEST_PARENT") else {
        return;
    };
    let child = Cmd::new("sleep").arg("1000").spawn().unwrap();
    fs::write(format!("{path}.new"), child.pid().to_string()).unwrap();
    fs::rename(format!("{path}.new"), &path).unwrap();
    Cmd::new("sleep")
        .arg("1000")
        .run(Duration::from_secs(1000))
        .unwrap();
}

#[test]
fn sigkill_of_the_parent_kills_the_child() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pid");
    let mut parent = Cmd::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "process::tests::helper_parent_that_is_killed",
            "--nocapture",
        ])
        .env("PLUGPULL_TEST_PARENT", &path)
        .spawn()
        .unwrap();
    let until = Instant::now() + LONG;
    while !path.exists() {
        assert!(Instant::now() < until, "the helper never started its child");
        assert!(
            parent.try_wait().unwrap().is_none(),
            "the helper ended early"
        );
        std::thread::yield_now();
    }
    let grandchild: i32 = fs::read_to_string(&path).unwrap().parse().unwrap();
    assert!(alive(grandchild));
    parent.kill().unwrap();
    assert!(
        ends_within(grandchild, LONG),
        "sleep {grandchild} outlived its killed parent"
    );
}

#[test]
fn mounts_are_not_made_private_behind_the_spawner() {
    let mut child = Cmd::new("true").spawn().unwrap();
    child.wait(Duration::from_secs(30)).unwrap();
    let error = enter_private_mounts().unwrap_err();
    assert!(error.to_string().contains("to be left"), "{error}");
}
