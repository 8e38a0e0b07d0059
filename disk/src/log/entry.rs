//! The events of a recording, and how one ends.

use crate::units::{ByteCount, RequestId, Sector, Seq};

/// What a request does to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Stores data.
    Write,
    /// Stores zeros.
    WriteZeroes,
    /// Gives the range up; modelled as a write of zeros, the strictest thing a trim may do.
    Trim,
    /// Makes earlier completed writes durable.
    Flush,
}

/// A request, as it came off the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submit {
    /// When it was submitted.
    pub seq: Seq,
    /// Its number.
    pub id: RequestId,
    /// What it asks for.
    pub operation: Operation,
    /// The first sector it touches; 0 for a flush.
    pub at: Sector,
    /// How much it touches; 0 for a flush.
    pub length: ByteCount,
    /// Whether it asks to be durable when it is completed.
    pub fua: bool,
    /// Where in the log file a write's data begins.
    pub(crate) data_offset: u64,
}

impl Submit {
    /// Whether the request changes content, as a flush does not.
    pub fn is_write(&self) -> bool {
        self.operation != Operation::Flush
    }
}

/// The answer to a request, recorded before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete {
    /// When it was answered.
    pub seq: Seq,
    /// The request answered.
    pub id: RequestId,
    /// 0 for success, else the Linux errno.
    pub errno: u32,
}

/// Bytes that somebody wanted to have a place among the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When it was set.
    pub seq: Seq,
    /// What it says.
    pub text: Vec<u8>,
}

/// One event of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A request came in.
    Submit(Submit),
    /// A request was answered.
    Complete(Complete),
    /// A mark was set.
    Mark(Mark),
    /// The power was cut; always the last event.
    Cut(Seq),
}

impl Entry {
    /// The event's place in the order.
    pub fn seq(&self) -> Seq {
        match self {
            Entry::Submit(submit) => submit.seq,
            Entry::Complete(complete) => complete.seq,
            Entry::Mark(mark) => mark.seq,
            Entry::Cut(seq) => *seq,
        }
    }
}

/// How a recording ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was closed in good order, or ends with the power cut it was meant to end with.
    Complete,
    /// The recorder was killed or the file was damaged; what came before may be looked at, but
    /// no verdict on it is better than "infrastructure".
    Truncated {
        /// The offset of the first byte that could not be used.
        at_byte: u64,
        /// The last event that is whole.
        last_seq: Seq,
        /// What was found there.
        why: String,
    },
}
