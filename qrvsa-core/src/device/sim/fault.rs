//! Rules of misbehaviour: on which requests, how often, and what happens.

use std::ops::Range;
use std::time::Duration;

use super::Operation;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The request fails with this errno and has no effect (`EIO`, `ENOSPC`, ...).
    Fail {
        /// The errno.
        errno: i32,
    },
    /// The request is never answered: it times out, without waiting in real time. A write may land later, see
    /// [`SimControl::release_hung`](super::SimControl::release_hung).
    Hang,
    /// The request succeeds after moving the simulated clock.
    Slow {
        /// By how much.
        duration: Duration,
    },
    /// A write or discard is acknowledged and dropped; a flush is a lie. No effect on a read.
    Lose,
    /// A write lands, or a read comes from, somewhere else; a write that would not fit there goes to its own place.
    Misdirect {
        /// Where, in bytes; a multiple of 4 KiB.
        to: u64,
    },
    /// Only the first sectors of a write arrive.
    Torn {
        /// How many sectors of 512 bytes arrive.
        sectors: usize,
        /// The error that is reported; `None`: success.
        errno: Option<i32>,
    },
    /// A byte changes on its way, to the medium or from it.
    Flip {
        /// Which byte of the request.
        byte: u64,
        /// The bits that flip.
        mask: u8,
    },
}

/// A rule. Of several that match a request, the first injected applies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    operation: Option<Operation>,
    range: Option<Range<u64>>,
    skip: u64,
    times: u64,
    effect: Effect,
}

impl Fault {
    /// A rule for every request, forever.
    pub fn new(effect: Effect) -> Fault {
        Fault { operation: None, range: None, skip: 0, times: u64::MAX, effect }
    }

    /// Only requests of this kind.
    #[must_use]
    pub fn on(mut self, operation: Operation) -> Fault {
        self.operation = Some(operation);
        self
    }

    /// Only requests that touch these bytes. A flush touches none.
    #[must_use]
    pub fn within(mut self, range: Range<u64>) -> Fault {
        self.range = Some(range);
        self
    }

    /// Not the first `skip` that match.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Fault {
        self.skip = skip;
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Fault {
        self.times = times;
        self
    }

    /// Once.
    #[must_use]
    pub fn once(self) -> Fault {
        self.times(1)
    }

    fn matches(&self, operation: Operation, range: &Range<u64>) -> bool {
        self.times > 0
            && self.operation.is_none_or(|o| o == operation)
            && self.range.as_ref().is_none_or(|r| r.start < range.end && range.start < r.end)
    }
}

#[derive(Default)]
pub(super) struct Faults {
    rules: Vec<Fault>,
}

impl Faults {
    pub fn add(&mut self, fault: Fault) {
        self.rules.push(fault);
    }

    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// What happens to this request, counting it.
    pub fn effect(&mut self, operation: Operation, range: Range<u64>) -> Option<Effect> {
        let mut effect = None;
        for rule in self.rules.iter_mut().filter(|r| r.matches(operation, &range)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if effect.is_none() {
                if rule.times != u64::MAX {
                    rule.times -= 1;
                }
                effect = Some(rule.effect);
            }
        }
        self.rules.retain(|r| r.times > 0);
        effect
    }
}
