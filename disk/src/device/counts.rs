//! What a disk has done.

use serde::{Deserialize, Serialize};

use crate::device::Request;
use crate::log::Operation;
use crate::units::ByteCount;

/// What a disk has done since its recording began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: ByteCount,
    /// Writes of data.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: ByteCount,
    /// Flushes.
    pub flushes: u64,
    /// Requests that carried FUA.
    pub fua: u64,
    /// Trims.
    pub trims: u64,
    /// Writes of zeros without data.
    pub zeroes: u64,
    /// Requests refused as malformed or out of range; they are not recorded.
    pub rejected: u64,
    /// Faults that fired. There are no fault rules yet, so always 0.
    pub faults: u64,
}

impl Counts {
    /// Requests that were recorded: reads are not, nor are malformed ones.
    pub fn recorded_requests(&self) -> u64 {
        self.writes + self.zeroes + self.trims + self.flushes
    }

    pub(super) fn note(&mut self, request: &Request) {
        match *request {
            Request::Read { length, .. } => {
                self.reads += 1;
                self.read_bytes.0 += u64::from(length);
            }
            Request::Change {
                operation,
                length,
                fua,
                ..
            } => {
                self.fua += u64::from(fua);
                match operation {
                    Operation::Write => {
                        self.writes += 1;
                        self.written_bytes.0 += u64::from(length);
                    }
                    Operation::WriteZeroes => self.zeroes += 1,
                    Operation::Trim => self.trims += 1,
                    Operation::Flush => self.flushes += 1,
                }
            }
        }
    }
}
