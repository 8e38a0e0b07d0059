//! What a run tells a person while it goes on: a closed set of events, and two
//! ways to show them. With the report, the only place that prints.
//!
//! On a terminal each activity is a line that moves; elsewhere each event is a
//! line of text, so that a log reads the same as what was seen.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    sync::Mutex,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::report::Verdict;

/// Something that takes a while. It is the name of its line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activity {
    /// Tidying up after earlier runs.
    Sweep,
    /// Finding out what this host can do.
    Doctor,
    /// Installing or unpacking a tool that is missing.
    Tool {
        /// Its name.
        name: String,
    },
    /// Compiling a binary that goes into guests.
    Binary {
        /// Its name.
        name: String,
    },
    /// Building a guest image.
    Image {
        /// Its name.
        name: String,
    },
    /// Making a disk with a filesystem, or with a database on it.
    Base {
        /// Image, filesystem and content.
        name: String,
    },
    /// Booting and saving a template.
    Template {
        /// Image and configuration.
        name: String,
    },
    /// Running the tests.
    Tests,
}

impl std::fmt::Display for Activity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sweep => f.write_str("sweep"),
            Self::Doctor => f.write_str("doctor"),
            Self::Tool { name } => write!(f, "tool {name}"),
            Self::Binary { name } => write!(f, "binary {name}"),
            Self::Image { name } => write!(f, "image {name}"),
            Self::Base { name } => write!(f, "base disk {name}"),
            Self::Template { name } => write!(f, "template {name}"),
            Self::Tests => f.write_str("tests"),
        }
    }
}

/// How an activity ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was done.
    Done {
        /// How long it took.
        took: Duration,
    },
    /// What it makes was there already.
    Cached,
    /// It could not be done; the error itself is told by the caller.
    Failed,
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An activity begins.
    Began {
        /// Which.
        activity: Activity,
        /// In how many steps, where that is known.
        steps: Option<u64>,
    },
    /// A step of an activity begins.
    Step {
        /// Which activity.
        activity: Activity,
        /// Steps that are finished.
        done: u64,
        /// What is done now.
        what: String,
    },
    /// An activity ended.
    Ended {
        /// Which.
        activity: Activity,
        /// How.
        outcome: Outcome,
    },
    /// A test ended.
    Test {
        /// Its name.
        name: String,
        /// What became of it.
        verdict: Verdict,
        /// Whether it is a control.
        control: bool,
        /// How long it took.
        took: Duration,
        /// Tests that have ended, this one included.
        done: u64,
        /// Tests in all.
        of: u64,
    },
    /// Something a person should know, while the run goes on.
    Notice {
        /// In one line.
        text: String,
    },
    /// Something that changes what the run can show.
    Warning {
        /// In one line.
        text: String,
    },
}

/// Takes events. Events come from several threads.
pub trait Progress: Send + Sync {
    /// Show one event.
    fn tell(&self, event: &Event);
}

/// The right way to show events on standard error: moving lines on a terminal,
/// plain ones elsewhere.
pub fn on_stderr() -> Box<dyn Progress> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match io::stderr().is_terminal() && !dumb {
        true => Box::new(Bars::new(MultiProgress::new())),
        false => Box::new(Lines::new(io::stderr())),
    }
}

/// The event as a line of text; `None` where a log is better without it.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Began { activity, .. } => format!("{activity} …"),
        Event::Step {
            activity,
            done,
            what,
        } => format!("{activity} [{done}] {what}"),
        Event::Ended { activity, outcome } => match outcome {
            Outcome::Done { took } => format!("{activity} done in {}", shown(*took)),
            Outcome::Failed => format!("{activity} failed"),
            // Nothing was done, so there is nothing to tell.
            Outcome::Cached => return None,
        },
        Event::Test {
            name,
            verdict,
            control,
            took,
            done,
            of,
        } => {
            let word = match (verdict, control) {
                (Verdict::Pass, true) => "caught".to_owned(),
                (verdict, _) => verdict.to_string(),
            };
            format!("[{done}/{of}] {word:<6} {name} ({})", shown(*took))
        }
        Event::Notice { text } => text.clone(),
        Event::Warning { text } => format!("warning: {text}"),
    })
}

fn shown(took: Duration) -> String {
    match took.as_secs() {
        0..10 => format!("{:.1} s", took.as_secs_f64()),
        seconds => format!("{}:{:02}", seconds / 60, seconds % 60),
    }
}

/// One line of text for each event.
#[derive(Debug)]
pub struct Lines<W>(Mutex<(W, Option<Event>)>);

impl<W: Write> Lines<W> {
    /// To any writer.
    pub fn new(out: W) -> Self {
        Self(Mutex::new((out, None)))
    }
}

impl<W: Write + Send> Progress for Lines<W> {
    fn tell(&self, event: &Event) {
        let Some(line) = line(event) else {
            return;
        };
        // A writer that panicked in another thread leaves whole lines behind.
        let mut out = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let (out, last) = &mut *out;
        // A step that only moved on is news on a terminal, and noise in a log.
        if last.as_ref().is_some_and(|last| same_step(last, event)) {
            return;
        }
        *last = Some(event.clone());
        // A closed pipe is no reason to stop a run.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Whether two events are the same step of the same activity.
fn same_step(a: &Event, b: &Event) -> bool {
    match (a, b) {
        (
            Event::Step {
                activity: a,
                what: before,
                ..
            },
            Event::Step {
                activity: b,
                what: after,
                ..
            },
        ) => a == b && before == after,
        _ => false,
    }
}

/// A moving line for each activity.
#[derive(Debug)]
pub struct Bars {
    all: MultiProgress,
    open: Mutex<BTreeMap<Activity, ProgressBar>>,
}

/// How often a spinner moves.
const TICK: Duration = Duration::from_millis(120);

impl Bars {
    /// On the given display.
    pub fn new(all: MultiProgress) -> Self {
        Self {
            all,
            open: Mutex::default(),
        }
    }

    fn begin(&self, activity: &Activity, steps: Option<u64>) -> ProgressBar {
        let template = match steps {
            Some(_) => "{spinner} {prefix} [{bar:20}] {pos}/{len} {wide_msg} {elapsed}",
            None => "{spinner} {prefix} {wide_msg} {elapsed}",
        };
        let bar = match steps {
            Some(steps) => ProgressBar::new(steps),
            None => ProgressBar::new_spinner(),
        };
        let style = ProgressStyle::with_template(template);
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        let bar = self.all.add(bar.with_prefix(activity.to_string()));
        bar.enable_steady_tick(TICK);
        bar
    }
}

impl Progress for Bars {
    fn tell(&self, event: &Event) {
        let mut open = self
            .open
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::Began { activity, steps } => {
                let bar = self.begin(activity, *steps);
                if let Some(old) = open.insert(activity.clone(), bar) {
                    old.finish_and_clear();
                }
            }
            Event::Step {
                activity,
                done,
                what,
            } => {
                if let Some(bar) = open.get(activity) {
                    bar.set_position(*done);
                    bar.set_message(what.clone());
                }
            }
            Event::Ended { activity, .. } => {
                if let Some(bar) = open.remove(activity) {
                    bar.finish_and_clear();
                }
            }
            Event::Test { done, .. } => {
                if let Some(bar) = open.get(&Activity::Tests) {
                    bar.set_position(*done);
                }
            }
            Event::Notice { .. } | Event::Warning { .. } => {}
        }
        // What is over stays on the screen, above what moves.
        let lasting = !matches!(event, Event::Began { .. } | Event::Step { .. });
        if lasting && let Some(line) = line(event) {
            let _ = self.all.println(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    fn events() -> Vec<Event> {
        let image = || Activity::Image {
            name: "debian13".into(),
        };
        let template = Activity::Template {
            name: "debian13 ext4".into(),
        };
        vec![
            Event::Notice {
                text: "/dev/kvm opens and does not work: TCG is used".into(),
            },
            Event::Began {
                activity: image(),
                steps: Some(4),
            },
            Event::Step {
                activity: image(),
                done: 1,
                what: "unpacking".into(),
            },
            Event::Ended {
                activity: image(),
                outcome: Outcome::Done {
                    took: Duration::from_millis(61_400),
                },
            },
            Event::Ended {
                activity: template,
                outcome: Outcome::Cached,
            },
            Event::Began {
                activity: Activity::Tests,
                steps: Some(2),
            },
            Event::Test {
                name: "control-lying-disk::debian13::ext4::native".into(),
                verdict: Verdict::Pass,
                control: true,
                took: Duration::from_millis(4_260),
                done: 1,
                of: 2,
            },
            Event::Warning {
                text: "the archive moved on".into(),
            },
        ]
    }

    #[test]
    fn a_log_has_a_line_for_each_event() {
        let lines = Lines::new(Vec::new());
        for event in events() {
            lines.tell(&event);
        }
        let bytes = lines.0.into_inner().expect("no writer panicked").0;
        assert_eq!(
            String::from_utf8(bytes).expect("text"),
            "/dev/kvm opens and does not work: TCG is used\n\
             image debian13 …\n\
             image debian13 [1] unpacking\n\
             image debian13 done in 1:01\n\
             tests …\n\
             [1/2] caught control-lying-disk::debian13::ext4::native (4.3 s)\n\
             warning: the archive moved on\n"
        );
    }

    /// A terminal that only remembers what was written to it.
    #[derive(Debug, Clone, Default)]
    struct Recorder(Arc<Mutex<String>>);

    impl Recorder {
        fn add(&self, text: &str) -> io::Result<()> {
            self.0.lock().expect("not poisoned").push_str(text);
            Ok(())
        }
    }

    impl TermLike for Recorder {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.add(text)?;
            self.add("\n")
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.add(text)
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn on_a_terminal_what_ended_is_said_and_what_goes_on_has_a_bar() {
        let term = Recorder::default();
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        let bars = Bars::new(MultiProgress::with_draw_target(target));
        for event in events() {
            bars.tell(&event);
        }
        let text = term.0.lock().expect("not poisoned").clone();
        for line in [
            "/dev/kvm opens and does not work: TCG is used",
            "image debian13 done in 1:01",
            "[1/2] caught control-lying-disk::debian13::ext4::native (4.3 s)",
            "warning: the archive moved on",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        let open = bars.open.lock().expect("not poisoned");
        let open: Vec<_> = open
            .iter()
            .map(|(a, bar)| (a.clone(), bar.position()))
            .collect();
        assert_eq!(open, [(Activity::Tests, 1)]);
    }
}
