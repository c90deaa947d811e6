//! Matrices made ready for a processor, and their product with columns of bytes.
//!
//! One kernel is chosen per process ([`Kernel::best`]); all give the same bytes. A [`Matrix`] holds its factors in the
//! form its kernel reads, so that the product does nothing but load, multiply and add. Output rows are made in groups
//! of up to [`GROUP_ROWS`], as many sums as fit the registers; a matrix with more rows goes over its inputs several
//! times, in strips that stay in the cache.
//!
//! Invariant: a `Matrix` exists only for a kernel this processor runs. That is what makes calling the kernel sound.

use std::ops::Range;
use std::sync::LazyLock;

use super::{GROUP_BYTES, bit_images, portable};
use crate::error::Result;
use crate::fail;

#[cfg(target_arch = "x86_64")]
use super::x86;

/// Most output rows made in one pass.
const GROUP_ROWS: usize = 4;
/// Input bytes per strip when several passes are needed: half of a common second-level cache.
const STRIP_INPUT_BYTES: usize = 512 * 1024;
/// Least strip, in bytes of one column; a multiple of [`GROUP_BYTES`].
const STRIP_BYTES_MIN: usize = 4096;

/// A way to multiply by a matrix, named for the instructions it uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kernel {
    /// x86-64 with AVX-512 and GFNI.
    Avx512Gfni,
    /// x86-64 with AVX2 and GFNI.
    Avx2Gfni,
    /// x86-64 with AVX2: table look-ups by byte shuffles.
    Avx2,
    /// x86-64 with SSSE3: the same on half as wide vectors.
    Ssse3,
    /// Any processor.
    Portable,
}

impl Kernel {
    /// All kernels, best first.
    pub const ALL: [Kernel; 5] = [Kernel::Avx512Gfni, Kernel::Avx2Gfni, Kernel::Avx2, Kernel::Ssse3, Kernel::Portable];

    /// Whether this processor runs the kernel.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2");
        let gfni = || avx2() && is_x86_feature_detected!("gfni");
        match self {
            Kernel::Avx512Gfni => {
                gfni()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            Kernel::Avx2Gfni => gfni(),
            Kernel::Avx2 => avx2(),
            Kernel::Ssse3 => is_x86_feature_detected!("ssse3"),
            Kernel::Portable => true,
        }
    }

    /// Whether this processor runs the kernel.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Kernel::Portable
    }

    /// The best kernel this processor runs.
    pub fn best() -> Kernel {
        static BEST: LazyLock<Kernel> =
            LazyLock::new(|| Kernel::ALL.into_iter().find(|k| k.is_available()).unwrap_or(Kernel::Portable));
        *BEST
    }
}

/// The factors, group by group of output rows; within a group input by input, and for each input row by row.
enum Factors {
    #[cfg(target_arch = "x86_64")]
    Avx512Gfni(Vec<x86::Affine>),
    #[cfg(target_arch = "x86_64")]
    Avx2Gfni(Vec<x86::Affine>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Vec<x86::Nibbles>),
    #[cfg(target_arch = "x86_64")]
    Ssse3(Vec<x86::Nibbles>),
    Portable(Vec<portable::Tables>),
    /// One row of ones.
    Sum,
}

/// Where a group of rows stands among the factors: its number, and the range of single factors.
struct Part {
    group: usize,
    factors: Range<usize>,
}

/// A matrix over GF(2^16), made ready for one kernel.
pub struct Matrix {
    columns: usize,
    rows: usize,
    factors: Factors,
}

impl Matrix {
    /// Makes a row-major matrix of `columns` columns ready for `kernel`.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if this processor does not run the kernel.
    ///
    /// # Panics
    /// If the factors are no whole rows, or none.
    pub fn new(kernel: Kernel, columns: usize, factors: &[u16]) -> Result<Matrix> {
        assert!(columns > 0 && !factors.is_empty() && factors.len().is_multiple_of(columns), "whole rows");
        if !kernel.is_available() {
            fail!(Unsupported, "this processor has no instructions for the {kernel:?} codec kernel");
        }
        let rows = factors.len() / columns;
        #[cfg(target_arch = "x86_64")]
        let ordered = || {
            groups(rows).flat_map(move |(first, count)| {
                (0..columns)
                    .flat_map(move |j| (first..first + count).map(move |i| bit_images(factors[i * columns + j])))
            })
        };
        let tables = || {
            groups(rows)
                .flat_map(|(first, count)| {
                    (0..columns).map(move |j| {
                        let images: Vec<_> =
                            (first..first + count).map(|i| bit_images(factors[i * columns + j])).collect();
                        portable::Tables::new(&images)
                    })
                })
                .collect()
        };
        let plain_sum = rows == 1 && factors.iter().all(|f| *f == 1);
        let factors = match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Gfni => Factors::Avx512Gfni(ordered().map(x86::Affine::new).collect()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2Gfni => Factors::Avx2Gfni(ordered().map(x86::Affine::new).collect()),
            _ if plain_sum => Factors::Sum,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => Factors::Avx2(ordered().map(x86::Nibbles::new).collect()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3 => Factors::Ssse3(ordered().map(x86::Nibbles::new).collect()),
            _ => Factors::Portable(tables()),
        };
        Ok(Matrix { columns, rows, factors })
    }

    /// Bytes of memory the factors take.
    pub fn memory_bytes(&self) -> usize {
        match &self.factors {
            #[cfg(target_arch = "x86_64")]
            Factors::Avx512Gfni(all) | Factors::Avx2Gfni(all) => size_of_val(&all[..]),
            #[cfg(target_arch = "x86_64")]
            Factors::Avx2(all) | Factors::Ssse3(all) => size_of_val(&all[..]),
            Factors::Portable(all) => size_of_val(&all[..]),
            Factors::Sum => 0,
        }
    }

    /// Writes the product of the matrix with the columns `sources` to `outputs`, one per row.
    ///
    /// # Panics
    /// If the counts do not fit the matrix, or the lengths are not all the same multiple of [`GROUP_BYTES`].
    pub fn apply(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        assert_eq!((sources.len(), outputs.len()), (self.columns, self.rows), "one slice per column and per row");
        let len = sources[0].len();
        assert!(len.is_multiple_of(GROUP_BYTES), "whole groups of elements");
        assert!(sources.iter().all(|s| s.len() == len) && outputs.iter().all(|o| o.len() == len), "one length");

        let strip = if self.rows <= GROUP_ROWS {
            len.max(1)
        } else {
            (STRIP_INPUT_BYTES / self.columns / GROUP_BYTES * GROUP_BYTES).max(STRIP_BYTES_MIN)
        };
        for start in (0..len).step_by(strip) {
            let range = start..len.min(start + strip);
            for (group, (first, count)) in groups(self.rows).enumerate() {
                let part = Part { group, factors: first * self.columns..(first + count) * self.columns };
                let outputs = &mut outputs[first..first + count];
                match count {
                    1 => self.pass::<1>(part, sources, outputs, range.clone()),
                    2 => self.pass::<2>(part, sources, outputs, range.clone()),
                    3 => self.pass::<3>(part, sources, outputs, range.clone()),
                    _ => self.pass::<GROUP_ROWS>(part, sources, outputs, range.clone()),
                }
            }
        }
    }

    /// One group of `M` rows over one range of bytes.
    fn pass<const M: usize>(&self, part: Part, sources: &[&[u8]], outputs: &mut [&mut [u8]], range: Range<usize>) {
        let outputs: &mut [&mut [u8]; M] = outputs.try_into().expect("the caller matched the length");
        let Part { group, factors } = part;
        match &self.factors {
            #[cfg(target_arch = "x86_64")]
            Factors::Avx512Gfni(all) => {
                // SAFETY: Matrix::new made sure that this processor has the features, apply() that every slice is
                // as long as the range reaches and that the range is made of whole groups.
                unsafe { x86::avx512_gfni(&all[factors], sources, outputs, range) }
            }
            #[cfg(target_arch = "x86_64")]
            Factors::Avx2Gfni(all) => {
                // SAFETY: as above.
                unsafe { x86::avx2_gfni(&all[factors], sources, outputs, range) }
            }
            #[cfg(target_arch = "x86_64")]
            Factors::Avx2(all) => {
                // SAFETY: as above.
                unsafe { x86::avx2(&all[factors], sources, outputs, range) }
            }
            #[cfg(target_arch = "x86_64")]
            Factors::Ssse3(all) => {
                // SAFETY: as above.
                unsafe { x86::ssse3(&all[factors], sources, outputs, range) }
            }
            Factors::Portable(all) => {
                let tables = group * self.columns..(group + 1) * self.columns;
                portable::product(&all[tables], sources, outputs, range);
            }
            Factors::Sum => portable::sum(sources, outputs[0], range),
        }
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} x {})", self.rows, self.columns)
    }
}

/// Cuts rows into groups of nearly equal size, none above [`GROUP_ROWS`]: (first row, count).
fn groups(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(GROUP_ROWS);
    (0..count).map(move |g| {
        let (first, end) = (g * rows / count, (g + 1) * rows / count);
        (first, end - first)
    })
}

#[cfg(test)]
mod tests {
    use super::super::mul;
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    /// The product by definition, element by element.
    fn model(columns: usize, factors: &[u16], sources: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let len = sources[0].len();
        let mut outputs = vec![vec![0u8; len]; factors.len() / columns];
        for (output, row) in outputs.iter_mut().zip(factors.chunks(columns)) {
            for group in (0..len).step_by(64) {
                for lane in group..group + 32 {
                    let element = |s: &Vec<u8>| u16::from_le_bytes([s[lane], s[lane + 32]]);
                    let sum = sources.iter().zip(row).fold(0, |sum, (s, f)| sum ^ mul(element(s), *f));
                    [output[lane], output[lane + 32]] = sum.to_le_bytes();
                }
            }
        }
        outputs
    }

    #[test]
    fn groups_cover_all_rows_once() {
        for rows in 1..=255 {
            let mut next = 0;
            for (first, count) in groups(rows) {
                assert_eq!(first, next);
                assert!((1..=GROUP_ROWS).contains(&count));
                next += count;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn the_portable_kernel_is_always_there_and_absent_ones_are_refused() {
        assert!(Kernel::Portable.is_available());
        assert!(Kernel::best().is_available());
        for kernel in Kernel::ALL {
            match Matrix::new(kernel, 1, &[7]) {
                Ok(_) => assert!(kernel.is_available()),
                Err(e) => {
                    assert!(!kernel.is_available());
                    assert_eq!(e.kind(), ErrorKind::Unsupported);
                }
            }
        }
    }

    #[test]
    fn several_strips_give_the_product() {
        // 6 rows take two passes, and the columns are longer than a strip
        let (columns, len) = (100, 8192 + 64 * 5);
        let factors: Vec<u16> = (0..600u32).map(|i| (i * 40503 + 12345) as u16).collect();
        let sources: Vec<Vec<u8>> =
            (0..columns).map(|c| (0..len).map(|i| ((i * 31 + c * 17) >> 3) as u8).collect()).collect();
        let expected = model(columns, &factors, &sources);
        for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
            let sources: Vec<&[u8]> = sources.iter().map(|s| &s[..]).collect();
            let mut outputs = vec![vec![0u8; len]; 6];
            let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(|o| &mut o[..]).collect();
            Matrix::new(kernel, columns, &factors).unwrap().apply(&sources, &mut slices);
            assert_eq!(outputs, expected, "{kernel:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every kernel, any matrix (zeros and ones among the factors), any length, any alignment, nothing written
        /// beside the outputs.
        #[test]
        fn every_kernel_gives_the_product(
            columns in 1usize..7,
            rows in 1usize..10,
            groups in 0usize..13,
            shift in 0usize..64,
            factors in proptest::collection::vec(prop_oneof![Just(0u16), Just(1), any::<u16>()], 54),
            seed: u64,
        ) {
            let len = groups * 64;
            let mut state = seed | 1;
            let mut byte = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as u8 };
            let sources: Vec<Vec<u8>> = (0..columns).map(|_| (0..len).map(|_| byte()).collect()).collect();
            let factors = &factors[..rows * columns];
            let expected = model(columns, factors, &sources);
            let shifted: Vec<Vec<u8>> = sources.iter().map(|s| [&vec![0; shift][..], s].concat()).collect();
            let slices: Vec<&[u8]> = shifted.iter().map(|s| &s[shift..]).collect();
            for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
                let mut outputs = vec![vec![0xa5u8; len + 128]; rows];
                let mut windows: Vec<&mut [u8]> = outputs.iter_mut().map(|o| &mut o[shift..shift + len]).collect();
                Matrix::new(kernel, columns, factors).unwrap().apply(&slices, &mut windows);
                for (output, expected) in outputs.iter().zip(&expected) {
                    prop_assert_eq!(&output[shift..shift + len], &expected[..], "{:?}", kernel);
                    prop_assert!(output[..shift].iter().chain(&output[shift + len..]).all(|b| *b == 0xa5));
                }
            }
        }
    }
}
