//! A bitmap of rows.

/// A fixed number of bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u32,
}

impl Bitmap {
    /// `len` zero bits.
    pub fn new(len: u32) -> Bitmap {
        Bitmap { words: vec![0; len.div_ceil(64) as usize], len }
    }

    /// Number of bits.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bits at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a bit is set.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn get(&self, bit: u32) -> bool {
        assert!(bit < self.len);
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }

    fn set_one(&mut self, bit: u32, on: bool) {
        let mask = 1u64 << (bit % 64);
        let word = &mut self.words[(bit / 64) as usize];
        if on { *word |= mask } else { *word &= !mask }
    }

    /// Sets a run. Returns false, changing nothing, if a bit of it has that value already or lies beyond the end.
    #[must_use]
    pub fn change_run(&mut self, start: u32, count: u32, on: bool) -> bool {
        let Some(end) = start.checked_add(count) else { return false };
        if end > self.len || (start..end).any(|b| self.get(b) == on) {
            return false;
        }
        (start..end).for_each(|b| self.set_one(b, on));
        true
    }

    /// Number of set bits.
    pub fn count_ones(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// The first run of `count` clear bits starting at a multiple of `align` in `from..to`.
    pub fn find_clear_run(&self, from: u32, to: u32, count: u32, align: u32) -> Option<u32> {
        let to = to.min(self.len);
        let mut start = from.next_multiple_of(align);
        'outer: while start.checked_add(count)? <= to {
            let mut bit = start;
            while bit < start + count {
                let (index, shift) = ((bit / 64) as usize, bit % 64);
                let rest = self.words[index] >> shift;
                if rest & 1 != 0 {
                    // skip the run of ones
                    start = (bit + rest.trailing_ones()).next_multiple_of(align);
                    continue 'outer;
                }
                bit += rest.trailing_zeros().min(64 - shift);
            }
            return Some(start);
        }
        None
    }

    /// Runs of set bits in `from..to`, in order.
    pub fn set_runs(&self, from: u32, to: u32) -> Vec<std::ops::Range<u32>> {
        let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
        for bit in from..to.min(self.len) {
            if self.get(bit) {
                match runs.last_mut() {
                    Some(run) if run.end == bit => run.end += 1,
                    _ => runs.push(bit..bit + 1),
                }
            }
        }
        runs
    }

    /// The bytes of a chunk of bits starting at `chunk * bits`, least significant bit first.
    pub fn chunk_bytes(&self, chunk: u32, bits: u32) -> Vec<u8> {
        let first = (chunk * bits / 64) as usize;
        let words = (bits / 64) as usize;
        self.words.iter().skip(first).take(words).flat_map(|w| w.to_le_bytes()).collect()
    }

    /// Loads a chunk; bits beyond the end must be clear.
    #[must_use]
    pub fn load_chunk(&mut self, chunk: u32, bits: u32, bytes: &[u8]) -> bool {
        let first = (chunk * bits / 64) as usize;
        if !bytes.len().is_multiple_of(8) || bytes.len() > (bits / 8) as usize {
            return false;
        }
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let value = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
            match self.words.get_mut(first + i) {
                Some(slot) => *slot = value,
                None if value == 0 => {}
                None => return false,
            }
        }
        let tail = self.len % 64;
        tail == 0 || self.words.last().is_none_or(|w| w >> tail == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_and_changed_exactly_once() {
        let mut b = Bitmap::new(1000);
        assert!(b.change_run(3, 100, true));
        assert!(!b.change_run(102, 2, true));
        assert!(!b.change_run(999, 2, true));
        assert_eq!(b.find_clear_run(0, 1000, 3, 1), Some(0));
        assert_eq!(b.find_clear_run(0, 1000, 4, 1), Some(103));
        assert_eq!(b.find_clear_run(0, 1000, 4, 4), Some(104));
        assert_eq!(b.find_clear_run(104, 110, 8, 1), None);
        assert_eq!(b.find_clear_run(0, 1000, 897, 1), Some(103));
        assert_eq!(b.find_clear_run(0, 1000, 898, 1), None);
        assert_eq!(b.set_runs(0, 1000), vec![3..103]);
        assert_eq!(b.count_ones(), 100);
        let mut c = Bitmap::new(1000);
        assert!(c.load_chunk(0, 512, &b.chunk_bytes(0, 512)) && c.load_chunk(1, 512, &b.chunk_bytes(1, 512)));
        assert!(b == c);
        assert!(!c.load_chunk(1, 512, &[0xff; 64]), "bits beyond the end are refused");
    }
}
