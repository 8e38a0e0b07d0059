//! Whether another guest is worth its start.

use std::time::{Duration, Instant};

/// How long the states that are left must take to be worth another guest, which needs a second to
/// come up and sees for the first time what the others know.
const WORTH_A_GUEST: Duration = Duration::from_secs(10);

/// Whether what is left is worth another guest, by how long the states before it took.
pub(super) struct Worth {
    states: usize,
    /// When the second state was taken, and how many had been taken by then: the first one
    /// brings the guest up.
    since: Option<(Instant, usize)>,
    calls: u32,
}

impl Worth {
    pub(super) fn of(states: usize) -> Self {
        Self {
            states,
            since: None,
            calls: 0,
        }
    }

    /// Asked before each state of the first guest, when so many have been taken by all.
    pub(super) fn is_another(&mut self, taken: usize, helpers: usize) -> bool {
        self.calls += 1;
        match self.since {
            None if self.calls == 2 => self.since = Some((Instant::now(), taken)),
            None => {}
            Some((since, before)) => {
                let left = self.states.saturating_sub(taken);
                return is_worth(since.elapsed(), taken - before, left, helpers);
            }
        }
        false
    }
}

/// Whether so many further states take long enough, of which some took so long.
fn is_worth(took: Duration, states: usize, left: usize, helpers: usize) -> bool {
    let each = took.as_secs_f64() / states.max(1) as f64;
    each * left as f64 >= WORTH_A_GUEST.as_secs_f64() * (helpers + 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_guest_is_worth_it_where_much_is_left() {
        let ms = Duration::from_millis;
        // Mounting and reading pages; recovering a server.
        assert!(is_worth(ms(50), 1, 201, 0) && !is_worth(ms(50), 1, 199, 0));
        assert!(is_worth(ms(4_800), 4, 9, 0) && !is_worth(ms(4_800), 4, 8, 0));
        assert!(!is_worth(ms(4_800), 4, 16, 1));
    }

    #[test]
    fn nothing_is_known_before_a_state_was_looked_at_that_brought_no_guest_up() {
        let mut worth = Worth::of(1_000_000);
        assert!(!worth.is_another(0, 0) && !worth.is_another(1, 0));
        assert!(worth.since.is_some_and(|(_, taken)| taken == 1));
    }
}
