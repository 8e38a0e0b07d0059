//! How many threads read requests at a time.
//!
//! A request wakes the thread that has waited longest (the device's queue is first in,
//! first out), and a wake-up that crosses to another processor costs more than most
//! requests: many waiting threads make a lone client slow. Too few leave a slow
//! request in the way of all others. So one thread waits; who has answered parks when
//! another does, and who takes a request while nobody waits any more calls one more at
//! once if the request is known to be slow, such as an fsync. Any other may turn out to be
//! slow as well: a watch looks every five milliseconds, while there are requests, and
//! calls one more if nobody waits. Under load the threads that come find requests
//! and stay. (With two that wait a lone client made half as many calls in a second,
//! with four clients it is the same: docs/figures.md.)
//!
//! Architecture Invariant: not all threads are parked. One parks only when it has seen
//! another waiting, and that one does not park before it has taken a request.
//!
//! Architecture Invariant: while there are more threads to be had, no request waits
//! longer than the watch's interval because of others that are slow.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many threads wait for requests when there are none.
pub(crate) const WAITING: usize = 1;

/// How often the watch looks.
const INTERVAL: Duration = Duration::from_millis(5);

/// What a thread that takes a request, or the watch, is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Go on.
    Nobody,
    /// Start one more thread: all that exist are busy.
    NewThread,
    /// End: the session has.
    End,
}

/// The threads of a session, by what they are doing.
#[derive(Debug)]
pub(crate) struct Readers {
    most: usize,
    waiting: AtomicUsize,
    /// Whether the watch has something to look at.
    watching: AtomicBool,
    state: Mutex<State>,
    bell: Condvar,
    watch_bell: Condvar,
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
            watching: AtomicBool::new(false),
            state: Mutex::default(),
            bell: Condvar::new(),
            watch_bell: Condvar::new(),
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

    /// Notes that a request was taken; when nobody waits calls another thread or, unless
    /// it is known to be slow, lets the watch see to that.
    pub(crate) fn taken(&self, slow: bool) -> Call {
        if self.waiting.load(Ordering::Relaxed) > 0 || self.most == 1 {
            return Call::Nobody;
        }
        if slow {
            return self.call();
        }
        if !self.watching.swap(true, Ordering::AcqRel) {
            // Under the lock, so that it does not fall between the watch's look and its
            // going to sleep.
            let _state = self.state();
            self.watch_bell.notify_one();
        }
        Call::Nobody
    }

    /// Calls a parked thread, or asks for a new one.
    fn call(&self) -> Call {
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

    /// The watch: returns when a new thread is needed, or the session has ended.
    pub(crate) fn watch(&self) -> Call {
        loop {
            let state = self.state();
            let state = self
                .watch_bell
                .wait_while(state, |state| {
                    !state.ended && !self.watching.load(Ordering::Acquire)
                })
                .unwrap_or_else(PoisonError::into_inner);
            let (state, _) = self
                .watch_bell
                .wait_timeout_while(state, INTERVAL, |state| !state.ended)
                .unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return Call::End;
            }
            drop(state);
            self.watching.store(false, Ordering::Release);
            if self.waiting.load(Ordering::Relaxed) == 0 {
                // It goes on watching until somebody waits: who comes may take a slow
                // request too, and knows nothing of it.
                self.watching.store(true, Ordering::Release);
                if self.call() == Call::NewThread {
                    return Call::NewThread;
                }
            }
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
        self.watch_bell.notify_all();
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
    fn the_watch_calls_when_nobody_waits_and_ends_with_the_session() {
        let readers = Readers::new(2);
        readers.started();
        assert_eq!(readers.taken(false), Call::Nobody, "the watch sees to it");
        assert_eq!(readers.watch(), Call::NewThread);
        readers.started();
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| readers.watch());
            // Both are busy and there are no more; then one waits, and it sleeps.
            readers.wait(|| assert_eq!(readers.taken(false), Call::Nobody));
            readers.end();
            assert_eq!(watch.join().unwrap(), Call::End);
        });
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
