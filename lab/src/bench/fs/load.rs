//! The load generator: threads that begin together, are told when to stop, and have a
//! deadline.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// What one thread does, prepared: it counts its operations until it is done or told
/// to stop.
pub(super) type Job = Box<dyn FnOnce(&Stop) -> Result<u64> + Send>;

/// Whether it is time to stop.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the threads of a line did together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Done {
    pub(super) ops: u64,
    pub(super) elapsed: Duration,
}

/// Runs all jobs at once and waits for the last. They are asked to stop after
/// `duration`, where there is one.
///
/// # Errors
/// The first job's that failed; or that they were not done at the deadline, when their
/// threads still hang in a system call. Killing the server lets them go.
pub(super) fn run(jobs: Vec<Job>, duration: Option<Duration>, deadline: Duration) -> Result<Done> {
    let count = jobs.len();
    let gate = Arc::new(Barrier::new(count + 1));
    let stop = Stop::default();
    let (tell, told) = channel();
    for (n, job) in jobs.into_iter().enumerate() {
        let (gate, stop, tell) = (gate.clone(), stop.clone(), tell.clone());
        thread::Builder::new()
            .name(format!("load-{n}"))
            .spawn(move || {
                gate.wait();
                // A receiver that gave up at the deadline wants nothing any more.
                let _late = tell.send(job(&stop));
            })
            .context("start a thread of the load")?;
    }
    drop(tell);
    gate.wait();
    let began = Instant::now();
    let ending = duration.map(|duration| began + duration);
    let end = began + deadline;
    let (mut ops, mut done) = (0, 0);
    while done < count {
        let until = match ending {
            Some(ending) if !stop.asked() => ending,
            _ => end,
        };
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(result) => {
                ops += result?;
                done += 1;
            }
            Err(RecvTimeoutError::Timeout) if until == end => {
                bail!(
                    "{} of {count} threads not done after {deadline:?}",
                    count - done
                )
            }
            Err(RecvTimeoutError::Timeout) => stop.0.store(true, Ordering::Relaxed),
            Err(RecvTimeoutError::Disconnected) => bail!("a thread of the load has panicked"),
        }
    }
    Ok(Done {
        ops,
        elapsed: began.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn operations_of_all_threads_are_added() {
        let jobs: Vec<Job> = (1..=4_u64)
            .map(|n| Box::new(move |_: &Stop| Ok(n)) as Job)
            .collect();
        assert_eq!(run(jobs, None, LONG).unwrap().ops, 10);
    }

    #[test]
    fn threads_are_told_to_stop() {
        let spin = |stop: &Stop| {
            let mut ops = 0;
            while !stop.asked() {
                ops += 1;
            }
            Ok(ops)
        };
        let jobs: Vec<Job> = vec![Box::new(spin), Box::new(spin)];
        let done = run(jobs, Some(Duration::from_millis(20)), LONG).unwrap();
        assert!(done.ops > 0 && done.elapsed >= Duration::from_millis(20));
    }

    #[test]
    fn a_thread_that_hangs_is_not_waited_for() {
        let (_held, never) = channel::<u64>();
        let jobs: Vec<Job> = vec![Box::new(move |_| Ok(never.recv()?))];
        let error = run(jobs, None, Duration::from_millis(20)).unwrap_err();
        assert!(
            error.to_string().starts_with("1 of 1 threads not done"),
            "{error}"
        );
    }

    #[test]
    fn a_thread_that_fails_is_told() {
        let jobs: Vec<Job> = vec![Box::new(|_| bail!("no such file"))];
        assert_eq!(
            run(jobs, None, LONG).unwrap_err().to_string(),
            "no such file"
        );
    }
}
