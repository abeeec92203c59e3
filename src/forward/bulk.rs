//! Letting answers gather while many are on their way.
//!
//! Job servers write each answer by itself. A thread that wakes for every few costs itself and the job server on the same
//! host a quarter of their speed; one that waits a little reads many at once. A single job never waits.

use std::thread;
use std::time::Duration;

/// So many answers on their way are many.
const MANY: usize = 64;

/// The pause for each of them: no job server gives out a third of them in it, so none ever waits for us.
const PAUSE_PER_ANSWER: Duration = Duration::from_micros(2);

const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// Pauses if many answers are `expected`, before they are read.
pub fn gather(expected: usize) {
    if expected >= MANY {
        let pause = PAUSE_PER_ANSWER.saturating_mul(u32::try_from(expected).unwrap_or(u32::MAX));
        thread::sleep(pause.min(LONGEST_PAUSE));
    }
}
