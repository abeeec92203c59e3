//! Letting answers gather while many are on their way.
//!
//! Job servers write each answer by itself. A thread that wakes for every few costs itself and the job server on the same
//! host a quarter of their speed; one that waits a little reads many at once. A single job never waits.

use std::thread;
use std::time::Duration;

/// So many answers on their way are many.
const MANY: usize = 64;

/// More answers than this make the pause no longer: it ends after two milliseconds.
const MOST: usize = 1000;

/// The pause for each of them. gearmand takes longer for one as a rule, so it still has some to give when the pause ends.
const PAUSE_PER_ANSWER: Duration = Duration::from_micros(2);

/// Pauses if many answers are `expected`, before they are read.
pub fn gather(expected: usize) {
    if expected >= MANY {
        thread::sleep(PAUSE_PER_ANSWER * expected.min(MOST) as u32);
    }
}
