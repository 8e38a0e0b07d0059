//! Understands a server's log, line by line as it comes.
//!
//! The server is started with `log_line_prefix = '%p %e '`, so every line
//! says its process and SQLSTATE, and no message has to be guessed at.

use std::collections::VecDeque;

use plugpull_protocol::workload::{LogLine, ServerLog};

/// The prefix that [`LogReader`] understands.
pub(super) const PREFIX: &str = "%p %e ";

/// How many notable lines are kept.
const NOTABLE: usize = 60;

/// How many last lines are kept.
const TAIL: usize = 40;

/// Lines are cut at this length, in characters.
const LINE: usize = 400;

/// What a log has said so far.
#[derive(Debug, Default)]
pub(super) struct LogReader {
    pub(super) seen: ServerLog,
    /// It accepts connections.
    pub(super) ready: bool,
    /// The stream has ended: the server and all its processes are gone.
    pub(super) ended: bool,
    tail: VecDeque<String>,
}

impl LogReader {
    /// Take the next line, or the end.
    pub(super) fn line(&mut self, line: Option<&str>) {
        let Some(line) = line else {
            self.ended = true;
            return;
        };
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.chars().take(LINE).collect());
        // What has no prefix continues a message or comes from a library.
        if let Some(line) = parse(line) {
            self.understand(line);
        }
    }

    /// Everything so far.
    pub(super) fn report(&self) -> ServerLog {
        ServerLog {
            tail: self.tail.iter().cloned().collect(),
            ..self.seen.clone()
        }
    }

    fn understand(&mut self, line: LogLine) {
        let text = line.message.as_str();
        match line.severity.as_str() {
            "LOG" => {
                if text.starts_with("database system is ready to accept connections") {
                    self.ready = true;
                } else if text.starts_with("redo starts at") {
                    self.seen.recovered = true;
                } else if text.starts_with("checkpoint complete:") {
                    self.seen.checkpoints += 1;
                    self.seen.recycled += recycled(text).unwrap_or(0);
                } else if text.contains(") was terminated by signal ") {
                    self.seen.crashes += 1;
                    self.keep(line);
                }
            }
            "PANIC" => {
                self.seen.panics += 1;
                self.keep(line);
            }
            "FATAL" | "ERROR" | "WARNING" if !ordinary(&line) => self.keep(line),
            _ => {}
        }
    }

    fn keep(&mut self, line: LogLine) {
        if self.seen.notable.len() < NOTABLE {
            self.seen.notable.push(line);
        } else {
            self.seen.notable_left_out += 1;
        }
    }
}

/// What every start and stop may bring: 57P01 is a session ended by the stop,
/// 57P03 one refused while starting or stopping.
fn ordinary(line: &LogLine) -> bool {
    line.severity == "FATAL" && matches!(line.sqlstate.as_str(), "57P01" | "57P03")
}

fn parse(line: &str) -> Option<LogLine> {
    let (pid, rest) = line.split_once(' ')?;
    let (sqlstate, rest) = rest.split_once(' ')?;
    let (severity, message) = rest.split_once(":  ")?;
    let plain = sqlstate.len() == 5 && severity.bytes().all(|b| b.is_ascii_uppercase());
    Some(LogLine {
        pid: pid.parse().ok().filter(|_| plain)?,
        sqlstate: sqlstate.into(),
        severity: severity.into(),
        message: message.chars().take(LINE).collect(),
    })
}

/// The N of "…, 3 removed, N recycled; …".
fn recycled(text: &str) -> Option<u64> {
    let (before, _) = text.split_once(" recycled")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> LogReader {
        let mut log = LogReader::default();
        for line in lines {
            log.line(Some(line));
        }
        log
    }

    #[test]
    fn a_life_with_recovery_and_checkpoints_is_counted() {
        let log = read(&[
            "10 00000 LOG:  starting PostgreSQL 15.13 on x86_64",
            "12 00000 LOG:  redo starts at 0/1F3C2A8",
            "11 00000 LOG:  checkpoint complete: wrote 3 buffers (2.3%); 0 WAL file(s) added, 1 removed, 2 recycled; write=0.1 s",
            "10 00000 LOG:  database system is ready to accept connections",
            "11 00000 LOG:  checkpoint complete: wrote 9 buffers (7.0%); 0 WAL file(s) added, 0 removed, 1 recycled; write=0.1 s",
            "31 57P01 FATAL:  terminating connection due to administrator command",
        ]);
        assert!(log.ready && log.seen.recovered && !log.ended);
        assert_eq!((log.seen.checkpoints, log.seen.recycled), (2, 3));
        assert_eq!(log.seen.notable, []);
    }

    #[test]
    fn panics_crashes_and_corruption_are_kept_and_data_is_not() {
        let log = read(&[
            "9 XX001 WARNING:  page verification failed, calculated checksum 1 but expected 2",
            "9 XX001 ERROR:  invalid page in block 3 of relation base/5/16384",
            "9 XX001 STATEMENT:  select 'PANIC:  no'",
            "8 58030 PANIC:  could not fdatasync file \"000000010000000000000001\": Input/output error",
            "7 00000 LOG:  server process (PID 8) was terminated by signal 6: Aborted",
            "PANIC:  without a prefix",
        ]);
        assert_eq!((log.seen.panics, log.seen.crashes), (1, 1));
        let kept: Vec<_> = log.seen.notable.iter().map(|l| &l.severity).collect();
        assert_eq!(kept, ["WARNING", "ERROR", "PANIC", "LOG"]);
        assert_eq!(log.seen.notable[1].sqlstate, "XX001");
        assert_eq!(log.report().tail.len(), 6);
    }

    #[test]
    fn a_flood_is_bounded() {
        let long = format!("9 XX001 ERROR:  {}", "é".repeat(5_000));
        let log = read(&vec![long.as_str(); 500]);
        assert_eq!(log.seen.notable.len(), NOTABLE);
        assert_eq!(log.seen.notable_left_out, 500 - NOTABLE as u64);
        assert_eq!(log.report().tail.len(), TAIL);
        assert!(log.report().tail.iter().all(|l| l.chars().count() == LINE));
    }
}
