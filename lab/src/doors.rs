//! At whose door a failure is laid: the program's, the FUSE server's, the lower filesystem's, the
//! block layer's or the disk's. A function of what was recorded.
//!
//! A promise is kept by a chain: the program asks the mount for durability, the server of the
//! mount asks the lower filesystem, that asks the disk, and the disk does it. The first that did
//! not pass it on between the `begin` of a promise and its `ack` broke it:
//!
//! * what was lost had been answered, and then a flush that was answered too: the **device**;
//! * no call at the mount: the **program**;
//! * a call at the mount and none at the lower filesystem: the **FUSE server**;
//! * a call at the lower filesystem, and no flush: the **block layer**, where it takes the disk
//!   for one that needs none, else the **lower filesystem**;
//! * flushes, and none that covers what was lost: the lower filesystem, if it had written it by
//!   then. If it was written later or never, the program did not ask for *this*: it synced a file
//!   before it renamed it, say. Where the directory was synced as well, it is the lower
//!   filesystem again.
//!
//! Where nothing that was promised was lost, and a write that is there in part broke the promise, it is
//! the **program**'s if that write is content of a file and nothing is mounted over the lower
//! filesystem: nobody promises that a write is whole or absent (open(2) and write(2) do not; a
//! disk keeps its sectors whole and no more). Else nobody is accused.
//!
//! A call is evidence that somebody asked, not of what for. Inodes are compared where the mount
//! is the lower filesystem itself; those of a FUSE mount are numbers of their own. So where a
//! server passed some of several calls on, nobody is accused.

use std::collections::{BTreeMap, BTreeSet};

use plugpull_disk::{Entry, Operation, Recording, RequestId};
use plugpull_protocol::syncs::{Level, Note, Synced};

use crate::scenario::Door;

/// What is known of a failure.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// Every request of the recording.
    pub(crate) requests: &'a BTreeMap<RequestId, Request>,
    /// The event at which the power was cut.
    pub(crate) cut: u64,
    /// The writes that were lost.
    pub(crate) lost: &'a [RequestId],
    /// The files whose content these are, if all of them are content of files.
    pub(crate) files: &'a BTreeSet<u64>,
    /// Whether the promise is broken because a write is there in part, and kept if it is not there
    /// or whole.
    pub(crate) torn: Option<Torn>,
    /// The promise that was broken.
    pub(crate) promise: Promised,
    /// Whether nothing is mounted over the lower filesystem.
    pub(crate) native: bool,
    /// What was noted, in order.
    pub(crate) notes: &'a [(u64, Note)],
}

/// What was torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Torn {
    /// Content of files.
    Files,
    /// The filesystem's own, or nobody knows.
    Else,
}

/// A write or flush, by the events of the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flush: bool,
    pub(crate) fua: bool,
    pub(crate) sent: u64,
    /// When it was answered with success.
    pub(crate) answered: Option<u64>,
}

/// All of a recording's.
pub(crate) fn requests(recording: &Recording) -> BTreeMap<RequestId, Request> {
    let mut requests = BTreeMap::new();
    for entry in recording.entries() {
        match entry {
            Entry::Submit(submit) => {
                let request = Request {
                    flush: submit.operation == Operation::Flush,
                    fua: submit.fua,
                    sent: submit.seq.0,
                    answered: None,
                };
                requests.insert(submit.id, request);
            }
            Entry::Complete(complete) if complete.errno == 0 => {
                if let Some(request) = requests.get_mut(&complete.id) {
                    request.answered = Some(complete.seq.0);
                }
            }
            _ => {}
        }
    }
    requests
}

/// A promise's place in the recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promised {
    pub(crate) key: String,
    pub(crate) begun: u64,
    pub(crate) acked: u64,
}

/// A door, and the evidence in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// Whose.
    pub door: Door,
    /// Why.
    pub evidence: String,
}

/// Lay a failure at a door, if there is evidence enough.
pub(crate) fn lay(scene: &Scene<'_>) -> Option<Laid> {
    let is = |door, evidence| Some(Laid { door, evidence });
    if let Some(evidence) = scene.device_lied() {
        return is(Door::Device, evidence);
    }
    match scene.torn {
        // Who wrote it below a server is not known.
        Some(Torn::Files) if scene.native => {
            let evidence = "nothing that was promised was lost: a write of a file's content is there \
                            in part, and no layer below promises that a write is whole or absent";
            return is(Door::Program, evidence.into());
        }
        Some(_) => return None,
        None => {}
    }
    let watch = scene.watch()?;
    let Promised { key, begun, acked } = &scene.promise;
    let between = format!("between the begin of {key} (event {begun}) and its ack (event {acked})");
    let calls = scene.calls((*begun, *acked));
    let asked: Vec<&Synced> = match scene.native {
        true => calls.iter().filter(|call| scene.concerns(call)).collect(),
        false => of(&calls, Level::Mount),
    };
    if asked.is_empty() {
        let evidence = match calls.is_empty() {
            true => format!("nothing was synced {between}"),
            false => format!(
                "{} were synced {between}, and not what was lost",
                counted(calls.len(), "other file")
            ),
        };
        return is(Door::Program, evidence);
    }
    let times = counted(asked.len(), "call");
    let passed_on = of(&calls, Level::Lower).len();
    if !scene.native && (1..asked.len()).contains(&passed_on) {
        // Some were not passed on, and whether those were about this nobody knows.
        return None;
    }
    if !scene.native && passed_on == 0 {
        let evidence = format!(
            "the mount was asked to sync by {times} {between}, and its server did not ask the \
             lower filesystem"
        );
        return is(Door::FuseServer, evidence);
    }
    let flushes = scene.flushes(*begun, *acked);
    if flushes == 0 {
        let asked = format!("the lower filesystem was asked to sync by {times} {between}");
        return match watch {
            Watch::WriteThrough => is(
                Door::BlockLayer,
                format!(
                    "{asked}, and the disk got no flush: the guest's block layer takes it for \
                     write through"
                ),
            ),
            Watch::WriteBack => is(
                Door::LowerFilesystem,
                format!("{asked}, and the disk got no flush"),
            ),
        };
    }
    if let Some(id) = scene.written_by(*acked) {
        let evidence = format!(
            "request {id} had been written before the ack of {key} (event {acked}), and none of \
             the {} {between} came after it",
            counted(flushes, "flush")
        );
        return is(Door::LowerFilesystem, evidence);
    }
    let directory = asked.iter().any(|call| call.directory || call.inode == 0);
    let late = format!("what was lost was not written before the ack of {key} (event {acked})");
    match directory {
        true => is(
            Door::LowerFilesystem,
            format!("{late}, and a directory was synced {between}"),
        ),
        false => is(
            Door::Program,
            format!("{late}, and no directory was synced {between}, only files"),
        ),
    }
}

/// How far the watch can be trusted.
enum Watch {
    WriteThrough,
    WriteBack,
}

impl Scene<'_> {
    /// A lost write that had been answered before a flush was sent that was answered too.
    fn device_lied(&self) -> Option<String> {
        let by_the_cut = |request: &Request| request.answered.filter(|at| *at <= self.cut);
        let flushes = self.requests.iter().filter(|(_, request)| request.flush);
        let flushes: Vec<_> = flushes
            .filter_map(|(id, request)| Some((request.sent, id, by_the_cut(request)?)))
            .collect();
        self.lost.iter().find_map(|id| {
            let write = self.requests.get(id)?;
            let since = by_the_cut(write)?;
            if write.fua {
                return Some(format!(
                    "request {id} carried FUA, was answered at event {since}, and is lost"
                ));
            }
            let (_, flush, at) = flushes.iter().find(|(sent, ..)| *sent > since)?;
            Some(format!(
                "request {id} was answered at event {since}, the flush of request {flush} after \
                 it at event {at}, and the write is lost all the same"
            ))
        })
    }

    /// Whether all calls up to the ack were seen.
    fn watch(&self) -> Option<Watch> {
        let mut watch = None;
        let notes = self.notes.iter();
        for (seq, note) in notes.take_while(|(seq, _)| *seq <= self.promise.acked) {
            match note {
                Note::Watching { .. } if *seq > self.promise.begun => return None,
                Note::Watching {
                    write_through: true,
                } => watch = Some(Watch::WriteThrough),
                Note::Watching { .. } => watch = Some(Watch::WriteBack),
                Note::Blind { .. } => return None,
                Note::Synced(_) => {}
            }
        }
        watch
    }

    fn calls(&self, (begun, acked): (u64, u64)) -> Vec<Synced> {
        let within = |seq: &u64| begun < *seq && *seq <= acked;
        let notes = self.notes.iter().filter(|(seq, _)| within(seq));
        let calls = notes.filter_map(|(_, note)| match note {
            Note::Synced(calls) => Some(calls),
            _ => None,
        });
        calls.flatten().copied().collect()
    }

    /// Whether a call was about what was lost, as far as one knows.
    fn concerns(&self, call: &Synced) -> bool {
        call.inode == 0 || self.files.is_empty() || self.files.contains(&call.inode)
    }

    /// Flushes and writes with FUA that were sent and answered with success in between.
    fn flushes(&self, begun: u64, acked: u64) -> usize {
        let asks = self.requests.values().filter(|of| of.flush || of.fua);
        asks.filter(|of| begun < of.sent && of.answered.is_some_and(|at| at <= acked))
            .count()
    }

    /// A lost write that had been sent by then.
    fn written_by(&self, seq: u64) -> Option<RequestId> {
        let sent = |id: &&RequestId| self.requests.get(id).is_some_and(|of| of.sent <= seq);
        self.lost.iter().find(sent).copied()
    }
}

fn of(calls: &[Synced], level: Level) -> Vec<&Synced> {
    calls.iter().filter(|call| call.level == level).collect()
}

/// `1 call`, `2 calls`, `2 flushes`.
fn counted(count: usize, what: &str) -> String {
    match (count, what.ends_with('h')) {
        (1, _) => format!("1 {what}"),
        (_, true) => format!("{count} {what}es"),
        (_, false) => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A promise begun at event 10 and acknowledged at event 20, and a write (request 1) that is
    /// lost: sent and answered at these events.
    struct Case {
        native: bool,
        write: (u64, Option<u64>),
        flush: Option<(u64, u64)>,
        files: &'static [u64],
        write_through: bool,
        torn: Option<Torn>,
        calls: Vec<(u64, Synced)>,
    }

    const QUIET: Case = Case {
        native: true,
        write: (12, Some(13)),
        flush: None,
        files: &[],
        write_through: false,
        torn: None,
        calls: Vec::new(),
    };

    fn call(level: Level, inode: u64) -> Synced {
        Synced {
            level,
            inode,
            directory: inode == 2,
        }
    }

    fn mount(inode: u64) -> Vec<(u64, Synced)> {
        vec![(14, call(Level::Mount, inode))]
    }

    fn laid(case: &Case) -> Option<(Door, String)> {
        let request = |flush, (sent, answered)| Request {
            flush,
            fua: false,
            sent,
            answered,
        };
        let flush = case.flush.map(|(sent, at)| (sent, Some(at)));
        let flush = flush.map(|of| (RequestId(2), request(true, of)));
        let write = (RequestId(1), request(false, case.write));
        let requests = [Some(write), flush].into_iter().flatten().collect();
        let watching = Note::Watching {
            write_through: case.write_through,
        };
        let calls = case.calls.iter().copied();
        let calls = calls.map(|(seq, call)| (seq, Note::Synced(vec![call])));
        let notes: Vec<_> = [(1, watching)].into_iter().chain(calls).collect();
        let laid = lay(&Scene {
            requests: &requests,
            cut: 30,
            lost: &[RequestId(1)],
            files: &case.files.iter().copied().collect(),
            torn: case.torn,
            promise: Promised {
                key: "k".into(),
                begun: 10,
                acked: 20,
            },
            native: case.native,
            notes: &notes,
        })?;
        Some((laid.door, laid.evidence))
    }

    fn door(case: &Case) -> Door {
        laid(case).expect("it is laid somewhere").0
    }

    #[test]
    fn who_did_not_hand_it_on_is_to_blame() {
        assert_eq!(door(&QUIET), Door::Program);
        let fuse = |calls| Case {
            native: false,
            calls,
            ..QUIET
        };
        assert_eq!(door(&fuse(mount(12))), Door::FuseServer);
        let both = [mount(12), vec![(15, call(Level::Lower, 99))]].concat();
        assert_eq!(door(&fuse(both)), Door::LowerFilesystem);
        // A server that syncs by itself does not do so in the program's name.
        assert_eq!(
            door(&fuse(vec![(15, call(Level::Lower, 99))])),
            Door::Program
        );
        let synced = Case {
            calls: mount(12),
            ..QUIET
        };
        assert_eq!(door(&synced), Door::LowerFilesystem);
        let through = Case {
            write_through: true,
            ..synced
        };
        assert_eq!(door(&through), Door::BlockLayer);
    }

    #[test]
    fn a_flush_that_was_answered_convicts_the_disk() {
        let flushed = |flush| Case {
            flush: Some(flush),
            calls: mount(12),
            ..QUIET
        };
        let (door, evidence) = laid(&flushed((14, 15))).expect("laid");
        assert_eq!(door, Door::Device);
        assert!(
            evidence.contains("request 1 was answered at event 13"),
            "{evidence}"
        );
        // Sent before the write was answered, it covers nothing; answered after the cut neither.
        for flush in [(11, 15), (14, 31)] {
            assert_eq!(
                laid(&flushed(flush)).expect("laid").0,
                Door::LowerFilesystem
            );
        }
    }

    #[test]
    fn a_sync_of_something_else_is_none() {
        let other = |files| Case {
            files,
            flush: Some((14, 15)),
            write: (22, Some(23)),
            calls: mount(12),
            ..QUIET
        };
        assert_eq!(door(&other(&[13])), Door::Program);
        // What was renamed after its sync was written later, and no directory was synced.
        assert_eq!(door(&other(&[12])), Door::Program);
        let directory = Case {
            calls: mount(2),
            ..other(&[])
        };
        assert_eq!(door(&directory), Door::LowerFilesystem);
        let before = Case {
            calls: vec![(9, call(Level::Mount, 12)), (21, call(Level::Mount, 12))],
            ..QUIET
        };
        assert_eq!(door(&before), Door::Program);
    }

    #[test]
    fn nobody_is_accused_where_a_server_passed_some_calls_on() {
        let fuse = |calls: &[(u64, Level)]| Case {
            native: false,
            write: (25, None),
            flush: Some((16, 18)),
            calls: calls
                .iter()
                .map(|(at, level)| (*at, call(*level, 5)))
                .collect(),
            ..QUIET
        };
        let some = [(12, Level::Mount), (13, Level::Mount), (14, Level::Lower)];
        assert_eq!(laid(&fuse(&some)), None);
        assert_eq!(door(&fuse(&some[..2])), Door::FuseServer);
        assert_eq!(door(&fuse(&some[1..])), Door::Program);
    }

    #[test]
    fn a_torn_write_is_the_programs_where_it_is_a_files_and_nothing_is_between() {
        let torn = |torn, native| {
            let case = Case {
                torn,
                native,
                // Which else would be laid at the lower filesystem.
                calls: mount(5),
                ..QUIET
            };
            laid(&case).map(|(door, _)| door)
        };
        assert_eq!(torn(Some(Torn::Files), true), Some(Door::Program));
        assert_eq!(torn(Some(Torn::Files), false), None);
        assert_eq!(torn(Some(Torn::Else), true), None);
        assert_ne!(torn(None, true), None);
    }

    #[test]
    fn nothing_is_said_of_what_was_not_watched() {
        let unseen = |notes: &[(u64, Note)]| {
            lay(&Scene {
                requests: &BTreeMap::new(),
                cut: 30,
                lost: &[],
                files: &BTreeSet::new(),
                torn: None,
                promise: Promised {
                    key: "k".into(),
                    begun: 10,
                    acked: 20,
                },
                native: true,
                notes,
            })
        };
        let watching = |at| {
            let note = Note::Watching {
                write_through: false,
            };
            (at, note)
        };
        let blind = |at| (at, Note::Blind { why: "x".into() });
        assert_eq!(unseen(&[]), None);
        assert_eq!(unseen(&[watching(15)]), None);
        assert_eq!(unseen(&[watching(1), blind(12)]), None);
        assert!(unseen(&[watching(1), blind(21)]).is_some());
    }
}
