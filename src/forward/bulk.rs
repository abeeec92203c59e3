//! Letting answers gather while many are on their way.
//!
//! Job servers write each answer by itself. A thread that wakes for every few costs itself and the job server on the same
//! host a quarter of their speed; one that waits a little reads many at once. A single job never waits.

use std::thread;
use std::time::Duration;

/// So many answers on their way are many: no job server gives out so many jobs in a [`PAUSE`].
const MANY: usize = 128;

const PAUSE: Duration = Duration::from_millis(1);

/// Pauses if many answers are `expected`, before they are read.
pub fn gather(expected: usize) {
    if expected >= MANY {
        thread::sleep(PAUSE);
    }
}
