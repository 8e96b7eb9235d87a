//! Repeatable choices: splitmix64.

use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not be neighbouring streams.
        let mut rng = Self(seed ^ 0x5851_f42d_4c95_7f2d);
        Self(rng.draw() ^ seed.rotate_left(32))
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to before `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// How often out of ten thousand.
    pub(crate) fn chance(&mut self, of_ten_thousand: u64) -> bool {
        self.below(10_000) < of_ten_thousand
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len() as u64);
        &from[usize::try_from(at).expect("an index")]
    }

    /// Around `mean`, long tailed: most waits are short and some are several times as long.
    pub(crate) fn wait(&mut self, mean: u64) -> u64 {
        let short = self.below(mean.max(1)) + 1;
        if self.chance(2_500) {
            short + self.below(mean.max(1) * 4)
        } else {
            short
        }
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.draw(), self.draw())
    }
}
