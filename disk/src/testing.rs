//! Made-up histories for this crate's tests: any order of requests, answers, errors and marks
//! that a device could show, written as a real log and read back.

use std::path::Path;

use proptest::prelude::*;

use crate::log::{Frame, Kind, LogHeader, LogWriter, Operation, Recording};
use crate::units::{AtomicUnit, ByteCount, Honesty, SECTOR_BYTES, Seed};

/// The made-up disk: small, so that writes overlap often.
pub(crate) const DISK_SECTORS: u64 = 12;

/// One step of a history.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Submit {
        operation: Operation,
        at: u64,
        sectors: u64,
        fua: bool,
    },
    /// Answers one of the requests under way, chosen by the number.
    Complete {
        which: usize,
        errno: u32,
    },
    Mark,
}

pub(crate) fn honesty() -> impl Strategy<Value = Honesty> {
    prop_oneof![
        Just(Honesty::None),
        Just(Honesty::Volatile),
        Just(Honesty::LiesOnFlush)
    ]
}

pub(crate) fn history() -> impl Strategy<Value = Vec<Step>> {
    let operation = prop_oneof![
        5 => Just(Operation::Write),
        1 => Just(Operation::WriteZeroes),
        1 => Just(Operation::Trim),
        3 => Just(Operation::Flush),
    ];
    let submit = (
        operation,
        0..DISK_SECTORS,
        1..4_u64,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(operation, at, sectors, fua, also_fua)| Step::Submit {
            operation,
            at,
            sectors: sectors.min(DISK_SECTORS - at),
            fua: fua && also_fua && operation != Operation::Flush,
        });
    let errno = prop_oneof![5 => Just(0_u32), 1 => Just(5_u32)];
    let complete =
        (any::<usize>(), errno).prop_map(|(which, errno)| Step::Complete { which, errno });
    let step = prop_oneof![5 => submit, 5 => complete, 1 => Just(Step::Mark)];
    proptest::collection::vec(step, 0..40)
}

/// Writes the history as a log and reads it back. The data of request n is n + 1 in every byte.
pub(crate) fn record(path: &Path, honesty: Honesty, history: &[Step]) -> Recording {
    let header = LogHeader {
        recorded: true,
        size: ByteCount(DISK_SECTORS * SECTOR_BYTES),
        seed: Seed(3),
        unit: AtomicUnit::U512,
        honesty,
    };
    let mut log = LogWriter::create(path, &header).expect("a new log");
    let mut under_way = Vec::new();
    let mut next_id = 0;
    for step in history {
        let mut payload = Vec::new();
        let mut frame = match step {
            Step::Submit {
                operation,
                at,
                sectors,
                fua,
            } => {
                let mut frame = Frame::bare(Kind::Submit {
                    operation: *operation,
                    fua: *fua,
                });
                frame.id = next_id;
                under_way.push(next_id);
                next_id += 1;
                if *operation != Operation::Flush {
                    frame.offset = at * SECTOR_BYTES;
                    frame.length = sectors * SECTOR_BYTES;
                }
                if *operation == Operation::Write {
                    payload = vec![next_id as u8; frame.length as usize];
                }
                frame
            }
            Step::Complete { which, errno } => {
                if under_way.is_empty() {
                    continue;
                }
                let mut frame = Frame::bare(Kind::Complete);
                frame.id = under_way.remove(which % under_way.len());
                frame.errno = *errno;
                frame
            }
            Step::Mark => {
                payload = b"mark".to_vec();
                Frame::bare(Kind::Mark)
            }
        };
        frame.payload_bytes = payload.len() as u32;
        frame.payload_crc = crc32fast::hash(&payload);
        log.append(frame, &payload).expect("an entry");
    }
    log.close().expect("a trailer");
    let recording = Recording::open(path).expect("a recording");
    assert!(recording.is_complete(), "{:?}", recording.end());
    recording
}
