//! How many threads read requests at a time.
//!
//! A request wakes the thread that has waited longest (the device's queue is first in,
//! first out), and a wake-up that crosses to another processor costs more than most
//! requests: many waiting threads make a lone client slow. Too few leave a slow
//! request, such as an fsync, in the way of all others. So one thread waits; who has
//! answered parks when another does, and who takes a request while nobody waits any
//! more calls one more, at once for a request that is known to be slow and otherwise at
//! most every five milliseconds. Under load the threads that come find requests and stay.
//! (With two that wait a lone client made half as many calls in a second, with four
//! clients it is the same: docs/figures.md.)
//!
//! Architecture Invariant: not all threads are parked. One parks only when it has seen
//! another waiting, and that one does not park before it has taken a request.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How many threads wait for requests when there are none.
pub(crate) const WAITING: usize = 1;

/// How long after a thread was called nobody calls another for an ordinary request.
const PAUSE_MICROSECONDS: u64 = 5000;

/// What a thread that takes a request is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Go on.
    Nobody,
    /// Start one more thread: all that exist are busy.
    NewThread,
}

/// The threads of a session, by what they are doing.
#[derive(Debug)]
pub(crate) struct Readers {
    most: usize,
    waiting: AtomicUsize,
    begin: Instant,
    /// When a thread was last called, in microseconds since `begin`.
    called: AtomicU64,
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct State {
    threads: usize,
    parked: usize,
    /// Parked threads that were called and have not woken up yet.
    calls: usize,
    ended: bool,
}

impl Readers {
    /// For at most `most` threads.
    pub(crate) fn new(most: usize) -> Self {
        Readers {
            most: most.max(1),
            waiting: AtomicUsize::new(0),
            begin: Instant::now(),
            called: AtomicU64::new(0),
            state: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    /// How many threads to begin with.
    pub(crate) fn first(&self) -> usize {
        self.most.min(WAITING)
    }

    /// Notes a thread that was started.
    pub(crate) fn started(&self) {
        self.state().threads += 1;
    }

    /// Runs `read`, which waits for a request.
    pub(crate) fn wait<T>(&self, read: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let read = read();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        read
    }

    /// Notes that a request was taken; calls another thread when nobody waits.
    pub(crate) fn taken(&self, slow: bool) -> Call {
        if self.waiting.load(Ordering::Relaxed) > 0 || self.most == 1 {
            return Call::Nobody;
        }
        let now = u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let last = self.called.load(Ordering::Relaxed);
        if !slow && now.saturating_sub(last) < PAUSE_MICROSECONDS {
            return Call::Nobody;
        }
        self.called.store(now, Ordering::Relaxed);
        let mut state = self.state();
        if state.parked > state.calls {
            state.calls += 1;
            self.bell.notify_one();
            Call::Nobody
        } else if state.threads < self.most && !state.ended {
            Call::NewThread
        } else {
            Call::Nobody
        }
    }

    /// Parks the calling thread, which has answered, while enough others wait. Returns
    /// whether to read again; not when the session has ended.
    pub(crate) fn answered(&self) -> bool {
        if self.waiting.load(Ordering::Relaxed) < WAITING {
            return true;
        }
        let mut state = self.state();
        state.parked += 1;
        while state.calls == 0 && !state.ended {
            state = self
                .bell
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.calls = state.calls.saturating_sub(1);
        !state.ended
    }

    /// Lets the parked threads go.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.bell.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_is_called_only_when_nobody_waits() {
        let readers = Readers::new(3);
        assert_eq!(readers.first(), 1);
        readers.started();
        readers.started();
        readers.wait(|| assert_eq!(readers.taken(true), Call::Nobody));
        assert_eq!(readers.taken(true), Call::NewThread);
        readers.started();
        assert_eq!(readers.taken(true), Call::Nobody, "three are the most");
        assert!(readers.answered(), "nobody waits, so it reads again");
    }

    #[test]
    fn ordinary_requests_call_once_in_a_while() {
        let readers = Readers::new(9);
        readers.started();
        // As a request taken long after the last call, and one just after it.
        readers.called.store(0, Ordering::Relaxed);
        while readers.begin.elapsed().as_micros() <= u128::from(PAUSE_MICROSECONDS) {
            std::hint::spin_loop();
        }
        assert_eq!(readers.taken(false), Call::NewThread);
        assert_eq!(readers.taken(true), Call::NewThread);
        readers.called.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(readers.taken(false), Call::Nobody);
    }

    #[test]
    fn a_parked_thread_comes_when_called_and_goes_at_the_end() {
        let readers = Readers::new(9);
        let readers = &readers;
        std::thread::scope(|scope| {
            let (sent, received) = std::sync::mpsc::channel();
            readers.wait(|| {
                scope.spawn(move || {
                    readers.started();
                    sent.send(readers.answered()).unwrap();
                    // Nobody waits any more, so this does not park.
                    sent.send(readers.answered()).unwrap();
                });
                while readers.state().parked == 0 {
                    std::thread::yield_now();
                }
            });
            assert_eq!(readers.taken(true), Call::Nobody, "a parked one is called");
            assert!(received.recv().unwrap());
            assert!(received.recv().unwrap());
            readers.wait(|| {
                let last = scope.spawn(|| readers.answered());
                while readers.state().parked == 0 {
                    std::thread::yield_now();
                }
                readers.end();
                assert!(!last.join().unwrap());
            });
        });
    }
}
