//! What commands cost, learned from those before them: decides whether one is carried out on the connection's own thread.
//!
//! A command that took long because its thread had lost the processor to others, and not because it waited for something,
//! says nothing of its kind.

use nix::sys::resource::{UsageWho, getrusage};

/// Commands cheaper than this are carried out at once, one after the other, in nanoseconds.
const CHEAP_NS: u32 = 60_000;
/// A command that is alone is carried out at once up to this cost.
const ALONE_NS: u32 = 400_000;
/// What a command is taken to cost after one of its kind was left to itself.
const SLOW_NS: u32 = 8_000_000;
/// A command that took less is not asked whether it had lost the processor.
const DOUBTFUL_NS: u64 = 150_000;
/// Data longer than this makes another kind.
const LONG_BYTES: u32 = 64 << 10;

const KEYS: usize = 1024;

/// Moving averages by kind of command.
pub(crate) struct Costs(Box<[u32; KEYS]>);

impl Default for Costs {
    fn default() -> Costs {
        Costs(Box::new([0; KEYS]))
    }
}

/// The kind of a command: opcode, forced unit access, length.
pub(crate) fn key(cdb: &[u8], bytes: u32) -> u16 {
    let opcode = cdb.first().copied().unwrap_or_default();
    let fua = opcode >= 0x20 && cdb.get(1).is_some_and(|b| b & 8 != 0);
    u16::from(opcode) | u16::from(fua) << 8 | u16::from(bytes > LONG_BYTES) << 9
}

/// How often a thread had to give the processor up so far (getrusage(2), RUSAGE_THREAD).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Switches {
    /// It waited for something.
    waited: i64,
    /// Others had their turn.
    lost: i64,
}

impl Switches {
    /// Of this thread.
    pub(crate) fn now() -> Switches {
        getrusage(UsageWho::RUSAGE_THREAD).map_or_else(
            |_| Switches::default(),
            |usage| Switches { waited: usage.voluntary_context_switches(), lost: usage.involuntary_context_switches() },
        )
    }

    /// What a command that took so long on this thread teaches; `None`: nothing, as the thread never waited, but lost the
    /// processor. `self` is from before it, and becomes what is now when it was looked at.
    pub(crate) fn lesson(&mut self, took_ns: u64) -> Option<u64> {
        if took_ns < DOUBTFUL_NS {
            return Some(took_ns);
        }
        let before = std::mem::replace(self, Switches::now());
        (self.waited != before.waited || self.lost == before.lost).then_some(took_ns)
    }
}

impl Costs {
    fn of(&self, key: u16) -> u32 {
        self.0.get(usize::from(key)).copied().unwrap_or(SLOW_NS)
    }

    pub(crate) fn learn(&mut self, key: u16, took_ns: u64) {
        if let Some(cost) = self.0.get_mut(usize::from(key)) {
            let took = u32::try_from(took_ns).unwrap_or(u32::MAX).min(SLOW_NS * 8);
            *cost = *cost - *cost / 8 + took / 8;
        }
    }

    pub(crate) fn was_slow(&mut self, key: u16) {
        if let Some(cost) = self.0.get_mut(usize::from(key)) {
            *cost = (*cost).max(SLOW_NS);
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
    fn who_waits_teaches() {
        let mut switches = Switches::now();
        assert_eq!(switches.lesson(1_000), Some(1_000));
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert_eq!(switches.lesson(1_000_000), Some(1_000_000));
        }
        let mut before = Switches { lost: switches.lost - 1, ..Switches::now() };
        assert_eq!((before.lesson(1_000_000), before.waited), (None, switches.waited));
    }

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
        costs.learn(write, 200_000_000);
        assert!(!costs.suits_here(write, true));
    }
}
