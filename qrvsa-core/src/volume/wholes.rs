//! Atomic writes that are not durable yet. What makes a part of one durable takes all of it along: otherwise a crash after a
//! durable write beside it, or over a part of it, would leave a piece.

use std::ops::Range;

use parking_lot::Mutex;

/// More are remembered as one range around all of them.
const REMEMBERED_MAX: usize = 256;

struct Whole {
    id: u64,
    range: Range<u64>,
    /// The write is done: whoever makes the range durable from now on has all of it.
    done: bool,
}

/// The atomic writes of a volume.
#[derive(Default)]
pub(super) struct Wholes {
    state: Mutex<(u64, Vec<Whole>)>,
}

/// An atomic write that begins.
pub(super) struct Begun(u64);

impl Wholes {
    /// An atomic write to a range is about to begin.
    pub(super) fn begin(&self, range: Range<u64>) -> Begun {
        let mut state = self.state.lock();
        state.0 += 1;
        let id = state.0;
        if state.1.len() >= REMEMBERED_MAX {
            let (done, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut state.1).into_iter().partition(|w| w.done);
            let start = done.iter().map(|w| w.range.start).min();
            let end = done.iter().map(|w| w.range.end).max();
            if let Some((last, (start, end))) = done.last().zip(start.zip(end)) {
                kept.push(Whole { id: last.id, range: start..end, done: true });
            }
            state.1 = kept;
        }
        state.1.push(Whole { id, range, done: false });
        Begun(id)
    }

    /// It was done, or failed.
    pub(super) fn end(&self, begun: Begun, done: bool) {
        let mut state = self.state.lock();
        if !done {
            state.1.retain(|w| w.id != begun.0);
        } else if let Some(whole) = state.1.iter_mut().find(|w| w.id == begun.0) {
            whole.done = true;
        }
    }

    /// What has to become durable with a range: it, `round`ed, with all atomic writes that it meets. And which of these are
    /// durable then, for [`Wholes::forget`].
    pub(super) fn around(
        &self,
        range: Range<u64>,
        round: impl Fn(&Range<u64>) -> Range<u64>,
    ) -> (Range<u64>, Vec<u64>) {
        let state = self.state.lock();
        let mut range = round(&range);
        loop {
            let mut wider = range.clone();
            for whole in &state.1 {
                let span = round(&whole.range);
                if span.start < wider.end && wider.start < span.end {
                    wider = wider.start.min(span.start)..wider.end.max(span.end);
                }
            }
            if wider == range {
                break;
            }
            range = wider;
        }
        let inside = |w: &&Whole| w.done && range.start <= w.range.start && w.range.end <= range.end;
        let known = state.1.iter().filter(inside).map(|w| w.id).collect();
        (range, known)
    }

    /// These are durable as a whole.
    pub(super) fn forget(&self, known: &[u64]) {
        self.state.lock().1.retain(|w| !known.contains(&w.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_takes_along_what_it_meets() {
        let wholes = Wholes::default();
        let round = |r: &Range<u64>| r.start / 10 * 10..r.end.next_multiple_of(10);
        for range in [5..22, 31..45, 60..70] {
            let begun = wholes.begin(range);
            wholes.end(begun, true);
        }
        assert_eq!(wholes.around(100..101, round), (100..110, vec![]));
        assert_eq!(wholes.around(29..31, round), (0..50, vec![1, 2]));
        wholes.forget(&[1]);
        assert_eq!(wholes.around(15..25, round), (10..30, vec![]));
        let begun = wholes.begin(20..29);
        assert_eq!(wholes.around(15..25, round), (10..30, vec![]), "it is not done");
        wholes.end(begun, false);
        for _ in 0..2 * REMEMBERED_MAX {
            let begun = wholes.begin(200..210);
            wholes.end(begun, true);
        }
        assert!(wholes.state.lock().1.len() <= REMEMBERED_MAX);
        let (range, known) = wholes.around(205..206, round);
        wholes.forget(&known);
        assert_eq!((range, wholes.state.lock().1.len()), (30..210, 0));
    }
}
