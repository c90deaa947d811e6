//! Unit attention conditions (SAM-5 5.14): what an initiator must hear before its next command runs.

use super::sense::Sense;

/// An additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attention(pub u8, pub u8);

/// Conditions kept for one nexus; more are told as one that covers all.
const QUEUED_MAX: usize = 16;

impl Attention {
    pub(crate) const POWER_ON: Self = Self(0x29, 0x00);
    pub(crate) const TARGET_RESET: Self = Self(0x29, 0x02);
    pub(crate) const UNIT_RESET: Self = Self(0x29, 0x03);
    pub(crate) const MEDIUM_CHANGED: Self = Self(0x28, 0x00);
    pub(crate) const MODE_CHANGED: Self = Self(0x2a, 0x01);
    pub(crate) const RESERVATIONS_PREEMPTED: Self = Self(0x2a, 0x03);
    pub(crate) const RESERVATIONS_RELEASED: Self = Self(0x2a, 0x04);
    pub(crate) const REGISTRATIONS_PREEMPTED: Self = Self(0x2a, 0x05);
    pub(crate) const ACCESS_STATE_CHANGED: Self = Self(0x2a, 0x06);
    pub(crate) const CAPACITY_CHANGED: Self = Self(0x2a, 0x09);
    pub(crate) const COMMANDS_CLEARED: Self = Self(0x2f, 0x00);
    pub(crate) const THIN_THRESHOLD: Self = Self(0x38, 0x07);
    pub(crate) const INQUIRY_CHANGED: Self = Self(0x3f, 0x03);
    pub(crate) const LUNS_CHANGED: Self = Self(0x3f, 0x0e);

    pub(crate) const fn sense(self) -> Sense {
        Sense::new(6, self.0, self.1)
    }

    const fn is_reset(self) -> bool {
        self.0 == 0x29
    }
}

/// The conditions of one nexus with one unit, in the order in which they will be told.
#[derive(Debug, Default)]
pub(crate) struct Attentions {
    queue: Vec<Attention>,
}

impl Attentions {
    /// Adds a condition, once; a reset goes in front and covers what came before. The answer is how many more there are than before.
    pub(crate) fn add(&mut self, attention: Attention) -> isize {
        let before = self.queue.len();
        if attention.is_reset() {
            self.queue.clear();
            self.queue.push(attention);
        } else if self.queue.len() >= QUEUED_MAX {
            self.queue.clear();
            self.queue.push(Attention::POWER_ON);
        } else if !self.queue.contains(&attention) {
            self.queue.push(attention);
        }
        difference(before, self.queue.len())
    }

    pub(crate) fn take(&mut self) -> Option<Attention> {
        if self.queue.is_empty() { None } else { Some(self.queue.remove(0)) }
    }

    pub(crate) fn first(&self) -> Option<Attention> {
        self.queue.first().copied()
    }

    /// Forgets one condition, if it is there; answers whether it was.
    pub(crate) fn remove(&mut self, attention: Attention) -> bool {
        let before = self.queue.len();
        self.queue.retain(|a| *a != attention);
        self.queue.len() != before
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }
}

fn difference(before: usize, after: usize) -> isize {
    isize::try_from(after).unwrap_or(0) - isize::try_from(before).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_covers_and_each_is_told_once() {
        let mut queue = Attentions::default();
        assert_eq!(queue.add(Attention::LUNS_CHANGED), 1);
        assert_eq!(queue.add(Attention::LUNS_CHANGED), 0);
        assert_eq!(queue.add(Attention::CAPACITY_CHANGED), 1);
        assert_eq!(queue.add(Attention::UNIT_RESET), -1);
        assert_eq!(queue.take(), Some(Attention::UNIT_RESET));
        assert_eq!(queue.take(), None);
    }

    #[test]
    fn too_many_become_one() {
        let mut queue = Attentions::default();
        for n in 0..200 {
            queue.add(Attention(0x3f, n));
            assert!(queue.len() <= QUEUED_MAX);
        }
    }
}
