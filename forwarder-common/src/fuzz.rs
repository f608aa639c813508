//! Fuzz targets of the core: bytes become packets for a machine with rules, and whatever becomes of them has to hold what
//! each target says. libFuzzer drives them (`cargo xtask fuzz`), and so does [`run`], bounded and always alike, as a test.
//!
//! What a frame should look like is read by `frame`, which shares nothing with the parser under test.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fuzz target says by a panic what it found"
)]

mod errors;
mod fragments;
mod frame;
mod input;
mod packets;

use std::{collections::BTreeMap, eprintln, panic, vec::Vec};

use crate::verdict::Outcome;
pub use errors::errors;
pub use fragments::fragments;
pub use packets::packets;

/// How often each outcome was seen: what says whether a run has reached anything.
pub type Seen = BTreeMap<Outcome, u64>;

/// What to do with a target's bytes; panics where something does not hold.
pub type Target = fn(&[u8]) -> Seen;

/// All targets of the core, by their names.
pub const TARGETS: [(&str, Target); 3] = [("packets", packets), ("errors", errors), ("fragments", fragments)];

/// Pseudo-random bytes: the seed decides all of them (`SplitMix64`, Steele et al. 2014).
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins at a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Input for a target: up to 400 bytes.
    pub fn bytes(&mut self) -> Vec<u8> {
        let length = self.below(400);
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Gives a target so many inputs that follow from a seed; says what it saw in all of them.
///
/// # Panics
/// As the target does, having shown the input.
pub fn run(target: Target, seed: u64, runs: u32) -> Seen {
    let mut random = Random::new(seed);
    let mut all = Seen::new();
    for number in 0..runs {
        let bytes = random.bytes();
        match panic::catch_unwind(|| target(&bytes)) {
            Ok(outcomes) => outcomes.into_iter().for_each(|(outcome, times)| *all.entry(outcome).or_default() += times),
            Err(why) => {
                eprintln!("seed {seed}, input {number}: {bytes:02x?}");
                panic::resume_unwind(why);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests;
