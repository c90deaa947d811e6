//! Changes of inputs. All randomness comes from one seed, so that a run can be repeated exactly.

/// Random numbers: SplitMix64, which is small, and good enough to choose bytes.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Sixty-four bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.bits() % bound as u64) as usize }
    }
}

/// Values at which arithmetic goes wrong.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xfff,
    0x1000,
    0x1001,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0xf_ffff,
    0x10_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_f000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_ffff,
];

/// Most bytes that a change inserts or removes at once.
const PIECE_MAX: usize = 64;

/// Changes an input a few times; `other` is one to splice with. The result has at most `bytes_max` bytes.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], bytes_max: usize, random: &mut Random) {
    let most = 1 << random.below(5);
    let times = 1 + random.below(most);
    for _ in 0..times {
        change(input, other, words, random);
    }
    input.truncate(bytes_max);
}

fn change(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    let len = input.len();
    if len == 0 {
        input.extend_from_slice(other);
        input.push(random.bits() as u8);
        return;
    }
    let at = random.below(len);
    match random.below(13) {
        0 | 1 => input[at] ^= 1 << random.below(8),
        2 => input[at] = random.bits() as u8,
        3 => input[at] = input[at].wrapping_add((random.below(9) as u8).wrapping_sub(4)),
        4 | 5 => number(input, at, random),
        6 => input.truncate(at),
        7 => {
            let end = (at + 1 + random.below(PIECE_MAX)).min(len);
            input.drain(at..end);
        }
        8 => {
            // again, somewhere else
            let end = (at + 1 + random.below(PIECE_MAX)).min(len);
            let piece = input[at..end].to_vec();
            insert(input, random.below(len + 1), &piece);
        }
        9 => {
            let piece: Vec<u8> = (0..1 + random.below(PIECE_MAX / 4)).map(|_| random.bits() as u8).collect();
            insert(input, at, &piece);
        }
        10 => {
            // the front of one, the rest of the other
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        11 => {
            // a piece of the other in the place of what was here
            let from = random.below(other.len() + 1);
            let piece = &other[from..(from + random.below(PIECE_MAX)).min(other.len())];
            let fits = piece.len().min(len - at);
            input[at..at + fits].copy_from_slice(&piece[..fits]);
        }
        _ => {
            let word = words.get(random.below(words.len())).copied().unwrap_or(b"\0\0\0\0");
            if random.below(2) == 0 {
                insert(input, at, word);
            } else {
                let fits = word.len().min(len - at);
                input[at..at + fits].copy_from_slice(&word[..fits]);
            }
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

/// A number of 1, 2, 4 or 8 bytes, in either order, becomes an edge, the input's length, or a neighbour of what it was.
fn number(input: &mut [u8], at: usize, random: &mut Random) {
    let width = (1 << random.below(4)).min(input.len() - at);
    let big = random.below(2) == 0;
    let field = &input[at..at + width];
    let old = if big {
        field.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b))
    } else {
        field.iter().rev().fold(0, |n: u64, b| n << 8 | u64::from(*b))
    };
    let near = (random.below(17) as u64).wrapping_sub(8);
    let new = match random.below(4) {
        0 => EDGES[random.below(EDGES.len())],
        1 => EDGES[random.below(EDGES.len())].wrapping_add(near),
        2 => (input.len() as u64).wrapping_add(near),
        _ => old.wrapping_add(near),
    };
    let bytes = new.to_le_bytes();
    for (i, byte) in bytes.iter().take(width).enumerate() {
        input[if big { at + width - 1 - i } else { at + i }] = *byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_and_the_limit_holds() {
        let run = |seed| {
            let mut random = Random::new(seed);
            let mut all = Vec::new();
            for i in 0..2000 {
                let mut input = vec![7; i % 50];
                mutate(&mut input, b"another input", &[b"word"], 40, &mut random);
                assert!(input.len() <= 40);
                all.push(input);
            }
            all
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn numbers_are_written_in_both_orders() {
        let mut random = Random::new(3);
        let mut seen = [false; 2];
        for _ in 0..1000 {
            let mut input = [0u8; 4];
            number(&mut input, 0, &mut random);
            seen[0] |= input == [0x00, 0x10, 0x00, 0x00];
            seen[1] |= input == [0x00, 0x00, 0x10, 0x00];
        }
        assert_eq!(seen, [true; 2]);
    }
}
