//! Judges what PostgreSQL and its own checkers say.

use plugpull_protocol::Exited;
use plugpull_protocol::workload::plan::{Answer, Load};
use plugpull_protocol::workload::{Checksums, LedgerRun, LoadRun, LogLine, ServerRun};

use super::{Finding, Findings, first_lines};
use crate::scenario::OracleName;

/// How many lines of a program's output are told.
const LINES: usize = 8;

/// `pg_amcheck` must end with 0.
pub fn amcheck(exited: &Exited) -> Vec<Finding> {
    let mut findings = Findings::default();
    if !exited.success() {
        let said = format!("{}{}", exited.stdout, exited.stderr);
        let told = format!("exit {}: {}", exited.code, first_lines(&said, LINES));
        findings.add(OracleName::Amcheck, told);
    }
    findings.told()
}

/// `pg_checksums` must find no bad block outside free-space maps: those are
/// not logged, and a torn one is zeroed when it is next read, by design.
pub fn checksums(checksums: &Checksums) -> Vec<Finding> {
    let mut findings = Findings::default();
    let free_space = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        // A large map goes on in "16384_fsm.1".
        name.split('.').next().is_some_and(|n| n.ends_with("_fsm"))
    };
    let (mut forgiven, mut told) = (0, 0);
    for bad in &checksums.bad {
        if free_space(&bad.file) {
            forgiven += 1;
        } else {
            told += 1;
            let told = format!("{}, block {}: wrong checksum", bad.file, bad.block);
            findings.add(OracleName::Checksums, told);
        }
    }
    for complaint in &checksums.complaints {
        told += 1;
        findings.add(OracleName::Checksums, complaint.as_str());
    }
    // It must not fail for a reason that nobody understood.
    if !checksums.exited.success() && told == 0 && forgiven == 0 {
        let said = format!("{}{}", checksums.exited.stdout, checksums.exited.stderr);
        let told = first_lines(&said, LINES);
        findings.add(
            OracleName::Checksums,
            format!("exit {}: {told}", checksums.exited.code),
        );
    }
    findings.told()
}

/// A server must start, answer and stop cleanly, with nothing in its log that
/// speaks of corruption or failed I/O.
pub fn server(run: &ServerRun) -> Vec<Finding> {
    let mut findings = Findings::default();
    let exit = run.exit.map_or("killed".into(), |code| code.to_string());
    let tail = || run.log.tail.join("\n");
    if !run.started {
        let told = format!(
            "the server did not start (exit {exit}); its log:\n{}",
            tail()
        );
        findings.add(OracleName::Log, told);
    } else if run.exit != Some(0) {
        let told = format!(
            "the server did not stop cleanly (exit {exit}); its log:\n{}",
            tail()
        );
        findings.add(OracleName::Log, told);
    }
    for (i, line) in run.log.notable.iter().enumerate() {
        if alarming(line) && !forgiven(line, &run.log.notable[i + 1..]) {
            let LogLine {
                sqlstate,
                severity,
                message,
                ..
            } = line;
            findings.add(OracleName::Log, format!("{severity} {sqlstate}: {message}"));
        }
    }
    // The kept lines are the first ones; the counts are of all.
    if run.log.panics > 0 || run.log.crashes > 0 {
        let told = format!(
            "{} PANICs and {} crashed processes in the log",
            run.log.panics, run.log.crashes
        );
        findings.add(OracleName::Log, told);
    }
    findings.told()
}

/// A server whose disk failed under it must have gone down by itself. That
/// the disk did fail is for the runner to show.
pub fn stopped(run: &LedgerRun) -> Vec<Finding> {
    let mut findings = Findings::default();
    if !run.server_stopped {
        let told = format!(
            "the server went on; its clients were given {} errors: {}",
            run.error_count,
            run.errors.join("; ")
        );
        findings.add(OracleName::Stopped, told);
    }
    findings.told()
}

/// PANIC and FATAL, a crash, and internal (XX) and system (58) errors of any
/// severity: XX001 and XX002 are corruption, 58030 is failed I/O.
fn alarming(line: &LogLine) -> bool {
    matches!(line.severity.as_str(), "PANIC" | "FATAL" | "LOG")
        || line.sqlstate.starts_with("XX")
        || line.sqlstate.starts_with("58")
}

/// A torn free-space map: a warning that zeroes one out, and the checksum
/// warning (which names no relation) of the same process before it.
fn forgiven(line: &LogLine, rest: &[LogLine]) -> bool {
    let zeroed = |l: &LogLine| {
        let torn = l.message.contains("_fsm") && l.message.contains("zeroing out page");
        l.severity == "WARNING" && torn
    };
    let checksum = line.severity == "WARNING" && line.message.starts_with("page verification");
    let next = || rest.iter().find(|l| l.pid == line.pid);
    zeroed(line) || checksum && next().is_some_and(zeroed)
}

/// A loaded table must give its known answers, before and after a restart.
pub fn known_answers(load: &Load, run: &LoadRun) -> Vec<Finding> {
    let mut findings = Findings::default();
    for error in &run.errors {
        findings.add(OracleName::Answers, format!("a client was told: {error}"));
    }
    let expected = load.answers();
    for (when, answers) in [("before", &run.before), ("after", &run.after)] {
        if answers.is_empty() {
            let told = format!("no answers {when} the restart");
            findings.add(OracleName::Answers, told);
            continue;
        }
        for Answer { name, value } in &expected {
            let got = answers.iter().find(|answer| answer.name == *name);
            let got = got.map_or("nothing", |answer| answer.value.as_str());
            if got != value {
                let told = format!("{name} {when} the restart: {got} instead of {value}");
                findings.add(OracleName::Answers, told);
            }
        }
        for Answer { name, value } in answers {
            if !expected.iter().any(|answer| answer.name == *name) {
                let told = format!("{name} {when} the restart: {value}, unasked");
                findings.add(OracleName::Answers, told);
            }
        }
    }
    findings.told()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugpull_protocol::workload::{BadBlock, ServerLog};

    fn exited(code: i32, stdout: &str) -> Exited {
        Exited {
            code,
            stdout: stdout.into(),
            stderr: String::new(),
            elapsed_ms: 1,
        }
    }

    fn bad(file: &str) -> BadBlock {
        BadBlock {
            file: file.into(),
            block: 2,
        }
    }

    #[test]
    fn amcheck_says_what_it_found() {
        assert_eq!(amcheck(&exited(0, "")), []);
        let found = amcheck(&exited(2, "btree index \"a\": heap tuple lacks"));
        assert_eq!(found[0].oracle, OracleName::Amcheck);
        assert!(found[0].detail.contains("heap tuple lacks"));
    }

    #[test]
    fn only_free_space_maps_may_have_bad_checksums() {
        let ran = |bad: Vec<BadBlock>, complaints: &[&str], code| Checksums {
            exited: exited(code, "Bad checksums"),
            bad,
            complaints: complaints.iter().map(|c| (*c).into()).collect(),
        };
        assert_eq!(checksums(&ran(vec![], &[], 0)), []);
        let maps = vec![bad("base/5/16384_fsm"), bad("base/5/16384_fsm.1")];
        assert_eq!(checksums(&ran(maps, &[], 1)), []);
        let mixed = vec![bad("base/5/16384_fsm"), bad("base/5_fsm/16384_vm")];
        let found = checksums(&ran(mixed, &[], 1));
        assert_eq!(found.len(), 1);
        assert!(found[0].detail.contains("16384_vm, block 2"));
        assert_eq!(checksums(&ran(vec![], &["could not read"], 1)).len(), 1);
        let found = checksums(&ran(vec![], &[], 1));
        assert!(found[0].detail.contains("exit 1: Bad checksums"));
    }

    fn line(severity: &str, sqlstate: &str, message: &str) -> LogLine {
        LogLine {
            pid: 4,
            sqlstate: sqlstate.into(),
            severity: severity.into(),
            message: message.into(),
        }
    }

    fn lived(notable: Vec<LogLine>) -> ServerRun {
        ServerRun {
            started: true,
            answered: true,
            exit: Some(0),
            log: ServerLog {
                notable,
                ..ServerLog::default()
            },
        }
    }

    #[test]
    fn a_server_that_stays_down_or_panics_is_found() {
        assert_eq!(server(&lived(vec![])), []);
        let down = server(&ServerRun::default());
        assert!(down[0].detail.starts_with("the server did not start"));
        let mut unclean = lived(vec![]);
        unclean.exit = Some(1);
        assert!(server(&unclean)[0].detail.contains("exit 1"));
        let mut panicked = lived(vec![line("PANIC", "58030", "could not fdatasync")]);
        panicked.log.panics = 3;
        assert_eq!(server(&panicked).len(), 2);
    }

    #[test]
    fn corruption_is_found_by_its_sqlstate_and_a_torn_map_is_not() {
        let verification = || line("WARNING", "XX001", "page verification failed, calculated");
        let zeroed = |of: &str| {
            let message = format!("invalid page in block 2 of relation {of}; zeroing out page");
            line("WARNING", "XX001", &message)
        };
        assert_eq!(
            server(&lived(vec![verification(), zeroed("base/5/1_fsm")])),
            []
        );
        let table = vec![verification(), zeroed("base/5/1")];
        assert_eq!(server(&lived(table)).len(), 2);
        let mut other = zeroed("base/5/1_fsm");
        other.pid = 5;
        assert_eq!(server(&lived(vec![verification(), other])).len(), 1);
        let harmless = vec![line("ERROR", "23505", "duplicate key")];
        assert_eq!(server(&lived(harmless)), []);
        let index = vec![line("ERROR", "XX002", "index is corrupted")];
        assert_eq!(server(&lived(index)).len(), 1);
    }

    #[test]
    fn a_server_that_goes_on_is_found() {
        let mut run = LedgerRun {
            acked: vec![3],
            served: 1,
            checkpoints: 1,
            errors: vec!["tx/0/4: could not write".into()],
            error_count: 1,
            server_stopped: false,
            server: ServerRun::default(),
        };
        assert!(stopped(&run)[0].detail.contains("could not write"));
        run.server_stopped = true;
        assert_eq!(stopped(&run), []);
    }

    #[test]
    fn a_wrong_or_missing_answer_is_found() {
        let load = Load {
            rows: 300,
            connections: 2,
            seed: 1,
        };
        let right = LoadRun {
            before: load.answers(),
            after: load.answers(),
            errors: vec![],
            amcheck: None,
            first: ServerRun::default(),
            second: None,
        };
        assert_eq!(known_answers(&load, &right), []);
        let mut wrong = right.clone();
        wrong.after[1].value = "7".into();
        wrong.before.pop();
        let found = known_answers(&load, &wrong);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0]
                .detail
                .contains("group 6 before the restart: nothing")
        );
        assert!(
            found[1]
                .detail
                .contains("sum after the restart: 7 instead of")
        );
        let mut none = right;
        none.after.clear();
        none.errors.push("could not read block".into());
        assert_eq!(known_answers(&load, &none).len(), 2);
    }
}
