//! The simulator's only source of chance, and the hash of what came of it.

/// xoshiro256** seeded by splitmix64: the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Random([u64; 4]);

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut state = seed;
        Random([(); 4].map(|()| splitmix(&mut state)))
    }

    /// One of several independent sequences of a seed.
    pub fn part(seed: u64, number: u64) -> Random {
        Random::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(number))
    }

    pub fn next(&mut self) -> u64 {
        let Random([a, b, c, d]) = self;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// From `low` to `high`, both counted in.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        let span = high - low + 1;
        low + ((u128::from(self.next()) * u128::from(span)) >> 64) as u64
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.range(0, limit.max(1) as u64 - 1) as usize
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.range(1, count) == 1
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// From `low` to `high`, each order of magnitude as likely as the others.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let bits = |number: u64| u64::from(64 - number.leading_zeros());
        let top = 1_u64 << self.range(bits(low.max(1)) - 1, bits(high) - 1);
        self.range(top, 2 * top - 1).clamp(low, high)
    }
}

/// A running hash of everything that happened, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace(u64);

impl Trace {
    pub fn new(seed: u64) -> Trace {
        Trace(seed ^ 0x243f_6a88_85a3_08d3)
    }

    pub fn add(&mut self, what: u64, more: u64) {
        let product = u128::from(self.0 ^ what) * u128::from(more ^ 0x9e37_79b9_7f4a_7c15 | 1);
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ self.0.rotate_left(23);
    }

    pub fn get(self) -> u64 {
        self.0
    }
}
