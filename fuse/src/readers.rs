//! How many threads read requests at a time.
//!
//! A request wakes the thread that has waited longest (the device's queue is first in,
//! first out), and a wake-up that crosses to another processor costs more than most
//! requests: many waiting threads make a lone client slow. Too few leave a slow
//! request in the way of all others, and processors idle. So one thread waits, as long
//! as that is enough, and more come for three reasons:
//!
//! - Who takes a request that is known to be slow, such as an fsync, while nobody waits,
//!   calls one more at once.
//! - Who finds a request ready at every look, and behind it another, for some time calls
//!   one more: the clients are faster than the threads. No more than there are
//!   processors. (One ready request says nothing: a client that is woken on the same
//!   processor asks again before the thread that answered it has come to read.)
//! - Any other request may turn out to be slow. A watch looks every five milliseconds,
//!   while there are requests, and calls one more if nobody waits, unless as many
//!   threads as there are processors get on with their requests without sleeping: one
//!   more would only take turns with them. That the watch calls has another use: a lone
//!   client and the thread that serves it may have been woken on two processors over
//!   and over, and a thread that comes and goes changes places with it. Without that
//!   a lone client makes half as many calls (docs/figures.md).
//!
//! A thread that had to sleep for its request several times in a row, while another
//! was waiting as well, parks. Whether it slept is told by the time that the read took.
//!
//! Architecture Invariant: not all threads are parked. One parks only when it has seen
//! another waiting, and that one does not park before it has taken a request.
//!
//! Architecture Invariant: while there are more threads to be had, no request waits
//! longer than the watch's interval because of others that wait for something, nor than
//! two because of others that keep the processors busy.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{Pid, gettid};

/// How many threads wait for requests when there are none.
pub(crate) const WAITING: usize = 1;

/// How often the watch looks.
const INTERVAL: Duration = Duration::from_millis(5);

/// A read that takes longer has slept: one that finds a small request ready takes one or
/// two microseconds, the shortest sleep with its wake-up five.
const NO_SLEEP: Duration = Duration::from_micros(4);

/// After so many requests in a row that were ready it is worth a look whether there is yet
/// another, which costs a system call.
const BUSY: u32 = 32;

/// So many such looks in a row that found another mean that there is too much to do.
const PRESSED: u32 = 4;

/// So many in a row for which a thread slept mean that it is not needed.
const IDLE: u32 = 16;

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

/// How a thread has lately come by its requests: so many in a row the one way or the
/// other.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    ready: u32,
    slept: u32,
    pressed: u32,
}

impl Pace {
    fn note(&mut self, took: Duration) {
        if took < NO_SLEEP {
            self.ready += 1;
            self.slept = 0;
        } else {
            self.slept += 1;
            self.ready = 0;
            self.pressed = 0;
        }
    }

    /// Whether there is too much to do for the threads that there are. `is_more` says
    /// whether another request is ready.
    fn is_pressed(&mut self, is_more: impl FnOnce() -> bool) -> bool {
        if self.ready < BUSY {
            return false;
        }
        self.ready = 0;
        self.pressed = if is_more() { self.pressed + 1 } else { 0 };
        self.pressed >= PRESSED
    }
}

/// The threads of a session, by what they are doing.
#[derive(Debug)]
pub(crate) struct Readers {
    most: usize,
    processors: usize,
    waiting: AtomicUsize,
    /// How often any thread has come to read.
    reads: AtomicU64,
    /// Whether the watch has something to look at.
    watching: AtomicBool,
    state: Mutex<State>,
    bell: Condvar,
    watch_bell: Condvar,
}

#[derive(Debug, Default)]
struct State {
    threads: usize,
    /// Threads that are not parked.
    about: Vec<Pid>,
    parked: usize,
    /// Parked threads that were called and have not woken up yet.
    calls: usize,
    ended: bool,
}

impl Readers {
    /// For at most `most` threads on a machine with so many processors.
    pub(crate) fn new(most: usize, processors: usize) -> Self {
        Readers {
            most: most.max(1),
            processors,
            waiting: AtomicUsize::new(0),
            reads: AtomicU64::new(0),
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

    /// Notes that the calling thread begins to read.
    pub(crate) fn begin(&self) {
        self.state().about.push(gettid());
    }

    /// Runs `read`, which waits for a request.
    pub(crate) fn wait<T>(&self, pace: &mut Pace, read: impl FnOnce() -> T) -> T {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let read = read();
        pace.note(begun.elapsed());
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        read
    }

    /// Notes that a request was taken; when nobody waits calls another thread, if the
    /// request is known to be slow or there are too many, or lets the watch see to that.
    /// `is_more` says whether another request is ready.
    pub(crate) fn taken(
        &self,
        pace: &mut Pace,
        slow: bool,
        is_more: impl FnOnce() -> bool,
    ) -> Call {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if slow && waiting <= WAITING {
            // Of two that wait for such requests one takes what comes while the other
            // serves; if it parked it would have to be called for the next.
            pace.slept = 0;
        }
        if waiting > 0 || self.most == 1 {
            return Call::Nobody;
        }
        if slow {
            return self.call(self.most);
        }
        if pace.is_pressed(is_more) {
            pace.pressed = 0;
            return self.call(self.most.min(self.processors));
        }
        if !self.watching.swap(true, Ordering::AcqRel) {
            // Under the lock, so that it does not fall between the watch's look and its
            // going to sleep.
            let _state = self.state();
            self.watch_bell.notify_one();
        }
        Call::Nobody
    }

    /// Calls a parked thread, or asks for a new one, unless `most` are about.
    fn call(&self, most: usize) -> Call {
        let mut state = self.state();
        let resting = state.parked.saturating_sub(state.calls);
        if state.threads.saturating_sub(resting) >= most || state.ended {
            return Call::Nobody;
        }
        if resting > 0 {
            state.calls += 1;
            self.bell.notify_one();
            Call::Nobody
        } else {
            Call::NewThread
        }
    }

    /// The watch: returns when a new thread is needed, or the session has ended.
    /// `is_running` says whether a thread is on a processor or ready for one.
    pub(crate) fn watch(&self, is_running: impl Fn(Pid) -> bool) -> Call {
        loop {
            let state = self.state();
            let state = self
                .watch_bell
                .wait_while(state, |state| {
                    !state.ended && !self.watching.load(Ordering::Acquire)
                })
                .unwrap_or_else(PoisonError::into_inner);
            let reads = self.reads.load(Ordering::Relaxed);
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
                if !self.are_processors_busy(reads, &is_running)
                    && self.call(self.most) == Call::NewThread
                {
                    return Call::NewThread;
                }
            }
        }
    }

    /// Whether the threads keep all processors busy, and one has come to read since there
    /// were so many reads.
    fn are_processors_busy(&self, reads: u64, is_running: impl Fn(Pid) -> bool) -> bool {
        if self.reads.load(Ordering::Relaxed) == reads {
            return false;
        }
        let about = self.state().about.clone();
        let running = about.iter().filter(|thread| is_running(**thread));
        about.len() >= self.processors && running.count() >= self.processors
    }

    /// Parks the calling thread, which has answered, if it has had little to do and
    /// enough others wait. Returns whether to read again; not when the session has ended.
    pub(crate) fn answered(&self, pace: &mut Pace) -> bool {
        if pace.slept < IDLE || self.waiting.load(Ordering::Relaxed) < WAITING {
            return true;
        }
        let me = gettid();
        let mut state = self.state();
        state.parked += 1;
        state.about.retain(|thread| *thread != me);
        while state.calls == 0 && !state.ended {
            state = self
                .bell
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.calls = state.calls.saturating_sub(1);
        state.about.push(me);
        *pace = Pace::default();
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

    /// A thread that had to sleep for each of its requests.
    fn idle() -> Pace {
        Pace {
            slept: IDLE,
            ..Pace::default()
        }
    }

    fn busy() -> Pace {
        Pace {
            ready: BUSY,
            pressed: PRESSED - 1,
            ..Pace::default()
        }
    }

    fn no_more() -> bool {
        false
    }

    fn asleep(_: Pid) -> bool {
        false
    }

    /// Runs `check` while a thread waits.
    fn waiting(readers: &Readers, check: impl FnOnce()) {
        readers.wait(&mut Pace::default(), check);
    }

    #[test]
    fn one_more_is_called_for_a_slow_request_only_when_nobody_waits() {
        let readers = Readers::new(3, 1);
        let pace = &mut Pace::default();
        assert_eq!(readers.first(), 1);
        readers.started();
        readers.started();
        waiting(&readers, || {
            assert_eq!(readers.taken(&mut idle(), true, no_more), Call::Nobody);
        });
        assert_eq!(readers.taken(pace, true, no_more), Call::NewThread);
        readers.started();
        assert_eq!(
            readers.taken(pace, true, no_more),
            Call::Nobody,
            "three are the most"
        );
        assert!(
            readers.answered(&mut idle()),
            "nobody waits, so it reads again"
        );
    }

    #[test]
    fn one_more_is_called_for_too_many_requests_while_there_are_processors() {
        let readers = Readers::new(9, 2);
        readers.started();
        let pace = &mut busy();
        assert_eq!(readers.taken(pace, false, || true), Call::NewThread);
        readers.started();
        // It must be pressed again for the next, and there are two processors.
        assert_eq!((pace.ready, pace.pressed), (0, 0));
        assert_eq!(readers.taken(&mut busy(), false, || true), Call::Nobody);
    }

    #[test]
    fn requests_that_are_ready_one_at_a_time_are_not_too_many() {
        let mut pace = busy();
        assert!(!pace.is_pressed(|| false));
        pace.ready = BUSY;
        assert!(!pace.is_pressed(|| true), "it counts anew");
        assert!(!pace.is_pressed(|| panic!("looks at every request")));
    }

    #[test]
    fn a_thread_that_finds_requests_ready_does_not_park() {
        let readers = Readers::new(9, 2);
        waiting(&readers, || {
            assert!(readers.answered(&mut busy()));
            let slept_but_once = Pace {
                slept: IDLE - 1,
                ..Pace::default()
            };
            assert!(readers.answered(&mut { slept_but_once }));
        });
    }

    #[test]
    fn the_pace_counts_in_a_row() {
        let mut pace = Pace::default();
        for _ in 0..3 {
            pace.note(Duration::ZERO);
        }
        assert_eq!((pace.ready, pace.slept), (3, 0));
        pace.note(NO_SLEEP);
        assert_eq!((pace.ready, pace.slept), (0, 1));
    }

    #[test]
    fn the_watch_calls_when_nobody_waits_and_ends_with_the_session() {
        let readers = Readers::new(2, 1);
        readers.started();
        let pace = &mut Pace::default();
        assert_eq!(
            readers.taken(pace, false, no_more),
            Call::Nobody,
            "the watch sees to it"
        );
        assert_eq!(readers.watch(asleep), Call::NewThread);
        readers.started();
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| readers.watch(asleep));
            // Both are busy and there are no more; then one waits, and it sleeps.
            waiting(&readers, || {
                assert_eq!(
                    readers.taken(&mut Pace::default(), false, no_more),
                    Call::Nobody
                );
            });
            readers.end();
            assert_eq!(watch.join().unwrap(), Call::End);
        });
    }

    #[test]
    fn nobody_is_called_to_busy_processors_while_requests_are_taken() {
        let readers = Readers::new(9, 2);
        let running = |_: Pid| true;
        let before = readers.reads.load(Ordering::Relaxed);
        readers.begin();
        waiting(&readers, || ());
        assert!(!readers.are_processors_busy(before, running), "one of two");
        readers.begin();
        assert!(readers.are_processors_busy(before, running));
        assert!(!readers.are_processors_busy(before, asleep));
        let now = readers.reads.load(Ordering::Relaxed);
        assert!(
            !readers.are_processors_busy(now, running),
            "nobody has come to read since"
        );
    }

    #[test]
    fn who_takes_slow_requests_does_not_park_unless_two_others_wait() {
        let readers = Readers::new(9, 2);
        let mut pace = idle();
        waiting(&readers, || {
            waiting(&readers, || {
                readers.taken(&mut pace, true, no_more);
                assert_eq!(pace.slept, IDLE);
            });
            readers.taken(&mut pace, true, no_more);
            assert_eq!(pace.slept, 0);
        });
    }

    #[test]
    fn a_parked_thread_comes_when_called_and_goes_at_the_end() {
        let readers = Readers::new(9, 1);
        let readers = &readers;
        std::thread::scope(|scope| {
            let (sent, received) = std::sync::mpsc::channel();
            waiting(readers, || {
                scope.spawn(move || {
                    readers.started();
                    sent.send(readers.answered(&mut idle())).unwrap();
                    // Nobody waits any more, so this does not park.
                    sent.send(readers.answered(&mut idle())).unwrap();
                });
                while readers.state().parked == 0 {
                    std::thread::yield_now();
                }
            });
            let pace = &mut Pace::default();
            assert_eq!(
                readers.taken(pace, true, no_more),
                Call::Nobody,
                "a parked one is called"
            );
            assert!(received.recv().unwrap());
            assert!(received.recv().unwrap());
            waiting(readers, || {
                let last = scope.spawn(|| readers.answered(&mut idle()));
                while readers.state().parked == 0 {
                    std::thread::yield_now();
                }
                readers.end();
                assert!(!last.join().unwrap());
            });
        });
    }
}
