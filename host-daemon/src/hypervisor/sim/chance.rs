//! Chance that can be had again: a value depends on the seed and on what it is asked for, not on what was asked before, so
//! that tasks that run in another order meet the same faults.

use std::ops::RangeInclusive;

/// The source of one simulation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    /// An even number of 64 bits for the `n`th occasion of this kind on this VM.
    pub(super) fn number(self, kind: &str, vm: &str, n: u64) -> u64 {
        // FNV-1a over the words, then the finisher of SplitMix64 so that near inputs are far apart.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ self.0;
        let bytes = kind.bytes().chain([0]).chain(vm.bytes()).chain([0]).chain(n.to_le_bytes());
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }

    /// Whether something of this rate happens.
    pub(super) fn happens(self, per_mille: u32, kind: &str, vm: &str, n: u64) -> bool {
        self.number(kind, vm, n) % 1000 < u64::from(per_mille)
    }

    /// A number of a range.
    pub(super) fn within(self, range: RangeInclusive<u64>, kind: &str, vm: &str, n: u64) -> u64 {
        let (least, most) = range.into_inner();
        least + self.number(kind, vm, n) % (most - least + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_and_rates_are_met() {
        let hits = |seed| (0..10_000).filter(|n| Chance(seed).happens(50, "start", "vm-1", *n)).count();
        assert_eq!(hits(1), hits(1));
        assert_ne!(Chance(1).number("start", "vm-1", 1), Chance(2).number("start", "vm-1", 1));
        assert!((400..600).contains(&hits(1)), "{}", hits(1));
        assert_eq!((0..1000).filter(|n| Chance(3).happens(1000, "x", "y", *n)).count(), 1000);
        assert!((0..1000).all(|n| (7..=9).contains(&Chance(3).within(7..=9, "x", "y", n))));
    }
}
