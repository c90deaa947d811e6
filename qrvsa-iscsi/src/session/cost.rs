//! What commands cost, learned from those before them: decides whether one is carried out on the connection's own thread.

/// Commands cheaper than this are carried out at once, one after the other, in nanoseconds.
const CHEAP_NS: u32 = 60_000;
/// A command that is alone is carried out at once up to this cost.
const ALONE_NS: u32 = 400_000;
/// What a command is taken to cost after one of its kind was left to itself.
const SLOW_NS: u32 = 8_000_000;
/// Data longer than this makes another kind.
const LONG_BYTES: u32 = 64 << 10;

const KEYS: usize = 1024;

/// One kind of command, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Moving average.
    mean: u32,
    /// What the last one took.
    last: u32,
}

/// What each kind of command costs.
pub(crate) struct Costs(Box<[Cost; KEYS]>);

impl Default for Costs {
    fn default() -> Costs {
        Costs(Box::new([Cost::default(); KEYS]))
    }
}

/// The kind of a command: opcode, forced unit access, length.
pub(crate) fn key(cdb: &[u8], bytes: u32) -> u16 {
    let opcode = cdb.first().copied().unwrap_or_default();
    let fua = opcode >= 0x20 && cdb.get(1).is_some_and(|b| b & 8 != 0);
    u16::from(opcode) | u16::from(fua) << 8 | u16::from(bytes > LONG_BYTES) << 9
}

impl Costs {
    fn of(&self, key: u16) -> u32 {
        self.0.get(usize::from(key)).map_or(SLOW_NS, |cost| cost.mean)
    }

    /// One of the kind took so long. What counts is the shorter of it and the one before: a single long one had lost the
    /// processor to others, most likely, and says nothing of its kind.
    pub(crate) fn learn(&mut self, key: u16, took_ns: u64) {
        if let Some(cost) = self.0.get_mut(usize::from(key)) {
            let took = u32::try_from(took_ns).unwrap_or(u32::MAX).min(SLOW_NS * 8);
            let counts = took.min(std::mem::replace(&mut cost.last, took));
            cost.mean = cost.mean - cost.mean / 8 + counts / 8;
        }
    }

    /// One of the kind waits, and was left to itself.
    pub(crate) fn was_slow(&mut self, key: u16) {
        if let Some(cost) = self.0.get_mut(usize::from(key)) {
            *cost = Cost { mean: cost.mean.max(SLOW_NS), last: cost.last.max(SLOW_NS) };
        }
    }

    /// Whether to carry it out here; `alone`: nothing else waits or runs.
    pub(crate) fn suits_here(&self, key: u16, alone: bool) -> bool {
        self.of(key) < if alone { ALONE_NS } else { CHEAP_NS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_both_ways() {
        let mut costs = Costs::default();
        let write = key(&[0x2a, 0, 0], 4096);
        assert_ne!(write, key(&[0x2a, 8, 0], 4096));
        assert_ne!(write, key(&[0x2a, 0, 0], 1 << 20));
        assert!(costs.suits_here(write, false));
        costs.was_slow(write);
        assert!(!costs.suits_here(write, true));
        assert!(costs.suits_here(key(&[0x2a, 8, 0], 4096), false));
        let mut steps = 0;
        while !costs.suits_here(write, false) {
            costs.learn(write, 2_000);
            steps += 1;
        }
        assert!((20..80).contains(&steps), "{steps}");
        // a single one that lost the processor teaches nothing, two in a row do
        for took in [2_000, 200_000_000, 2_000, 200_000_000, 2_000] {
            costs.learn(write, took);
            assert!(costs.suits_here(write, false));
        }
        costs.learn(write, 200_000_000);
        costs.learn(write, 200_000_000);
        assert!(!costs.suits_here(write, true));
    }
}
