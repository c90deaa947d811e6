//! The matrix product for x86-64: GFNI on 512-bit and on 256-bit vectors, byte shuffles on 256-bit (AVX2) and on 128-bit
//! ones (SSSE3, for the small processors of many storage boxes).
//!
//! A group of 32 elements is 32 low bytes and 32 high bytes, so the low and the high halves of elements always sit in
//! separate vectors (two groups per pair of 512-bit vectors), and multiplication by a factor is four 8 x 8 bit matrices:
//! low to low, low to high, high to low, high to high. GFNI applies such a matrix to every byte of a vector in one
//! instruction. Without it, four 16-entry tables per output half, indexed by nibbles, do the same.
//!
//! Each step keeps `M` rows of sums for `U` units of input in registers, while all inputs pass by: every byte of input
//! is loaded once, every byte of output stored once.

use std::arch::x86_64::*;
use std::ops::Range;

use super::GROUP_BYTES;

/// Multiplication by a factor as four bit matrices in the form of `GF2P8AFFINEQB`.
#[derive(Clone, Copy)]
pub struct Affine {
    low_to_low: i64,
    high_to_low: i64,
    low_to_high: i64,
    high_to_high: i64,
}

impl Affine {
    /// From the images of the sixteen input bits.
    pub fn new(images: [u16; 16]) -> Affine {
        let part = |input: usize, output: usize| {
            let bytes = std::array::from_fn(|bit| images[input * 8 + bit].to_le_bytes()[output]);
            affine_matrix(bytes)
        };
        Affine { low_to_low: part(0, 0), high_to_low: part(1, 0), low_to_high: part(0, 1), high_to_high: part(1, 1) }
    }
}

/// The instruction wants byte 7 - i to hold the row of output bit i; `images` are the columns. So: transpose the 8 x 8
/// bits, by swapping ever larger blocks across the diagonal, and reverse the bytes.
fn affine_matrix(images: [u8; 8]) -> i64 {
    let mut x = u64::from_le_bytes(images);
    for (shift, mask) in [(7, 0x00aa_00aa_00aa_00aa), (14, 0x0000_cccc_0000_cccc), (28, 0x0000_0000_f0f0_f0f0)] {
        let t = (x ^ (x >> shift)) & mask;
        x ^= t ^ (t << shift);
    }
    x.swap_bytes() as i64
}

/// Multiplication by a factor as look-up tables: for each nibble of the input, lowest first, the low and the high
/// bytes of the images of its sixteen values.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Nibbles {
    low: [[u8; 16]; 4],
    high: [[u8; 16]; 4],
}

impl Nibbles {
    /// From the images of the sixteen input bits.
    pub fn new(images: [u16; 16]) -> Nibbles {
        let image = |nibble: usize, value: usize| {
            (0..4).filter(|bit| value >> bit & 1 != 0).fold(0u16, |sum, bit| sum ^ images[nibble * 4 + bit])
        };
        let table = |byte: usize| {
            std::array::from_fn(|nibble| std::array::from_fn(|value| image(nibble, value).to_le_bytes()[byte]))
        };
        Nibbles { low: table(0), high: table(1) }
    }
}

/// Writes `M` rows of the product over `range`. The factors stand input by input, row by row.
///
/// # Safety
/// The processor has the features; all slices reach at least to the end of `range`, which starts and ends at whole
/// groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,gfni")]
pub unsafe fn avx512_gfni<const M: usize>(
    factors: &[Affine],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]; M],
    range: Range<usize>,
) {
    let mut at = range.start;
    // SAFETY: each step stays within the range, and so within the slices.
    unsafe {
        while range.end - at >= 4 * GROUP_BYTES {
            avx512_gfni_step::<M, 2>(factors, sources, outputs, at);
            at += 4 * GROUP_BYTES;
        }
        avx2_gfni(factors, sources, outputs, at..range.end);
    }
}

/// `U` pairs of groups from byte `at`.
///
/// # Safety
/// The processor has the features; all slices reach at least to byte `at + U * 128`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,gfni")]
unsafe fn avx512_gfni_step<const M: usize, const U: usize>(
    factors: &[Affine],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]; M],
    at: usize,
) {
    /// Takes the lower halves of two vectors, or with 0xee the upper ones.
    const LOWER: i32 = 0x44;
    const UPPER: i32 = 0xee;
    /// Three-way XOR.
    const XOR3: i32 = 0x96;
    let mut low_sum = [[_mm512_setzero_si512(); U]; M];
    let mut high_sum = [[_mm512_setzero_si512(); U]; M];
    for (source, factors) in sources.iter().zip(factors.as_chunks::<M>().0) {
        let mut low = [_mm512_setzero_si512(); U];
        let mut high = [_mm512_setzero_si512(); U];
        for u in 0..U {
            // SAFETY: within the slice, by the contract.
            let (a, b) = unsafe {
                let p = source.as_ptr().add(at + u * 128);
                (_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(p.add(64).cast()))
            };
            low[u] = _mm512_shuffle_i64x2::<LOWER>(a, b);
            high[u] = _mm512_shuffle_i64x2::<UPPER>(a, b);
        }
        for (i, factor) in factors.iter().enumerate() {
            let low_to_low = _mm512_set1_epi64(factor.low_to_low);
            let high_to_low = _mm512_set1_epi64(factor.high_to_low);
            let low_to_high = _mm512_set1_epi64(factor.low_to_high);
            let high_to_high = _mm512_set1_epi64(factor.high_to_high);
            for u in 0..U {
                low_sum[i][u] = _mm512_ternarylogic_epi64::<XOR3>(
                    low_sum[i][u],
                    _mm512_gf2p8affine_epi64_epi8::<0>(low[u], low_to_low),
                    _mm512_gf2p8affine_epi64_epi8::<0>(high[u], high_to_low),
                );
                high_sum[i][u] = _mm512_ternarylogic_epi64::<XOR3>(
                    high_sum[i][u],
                    _mm512_gf2p8affine_epi64_epi8::<0>(low[u], low_to_high),
                    _mm512_gf2p8affine_epi64_epi8::<0>(high[u], high_to_high),
                );
            }
        }
    }
    for (i, output) in outputs.iter_mut().enumerate() {
        for u in 0..U {
            let (low, high) = (low_sum[i][u], high_sum[i][u]);
            // SAFETY: within the slice, by the contract.
            unsafe {
                let p = output.as_mut_ptr().add(at + u * 128);
                _mm512_storeu_si512(p.cast(), _mm512_shuffle_i64x2::<LOWER>(low, high));
                _mm512_storeu_si512(p.add(64).cast(), _mm512_shuffle_i64x2::<UPPER>(low, high));
            }
        }
    }
}

/// Writes `M` rows of the product over `range`. The factors stand input by input, row by row.
///
/// # Safety
/// The processor has the features; all slices reach at least to the end of `range`, which starts and ends at whole
/// groups.
#[target_feature(enable = "avx2,gfni")]
pub unsafe fn avx2_gfni<const M: usize>(
    factors: &[Affine],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]; M],
    range: Range<usize>,
) {
    let mut at = range.start;
    // SAFETY: each step stays within the range, and so within the slices.
    unsafe {
        // sixteen registers hold the sums of two groups only for up to two rows
        while M <= 2 && range.end - at >= 2 * GROUP_BYTES {
            avx2_gfni_step::<M, 2>(factors, sources, outputs, at);
            at += 2 * GROUP_BYTES;
        }
        while at < range.end {
            avx2_gfni_step::<M, 1>(factors, sources, outputs, at);
            at += GROUP_BYTES;
        }
    }
}

/// `U` groups from byte `at`.
///
/// # Safety
/// The processor has the features; all slices reach at least to byte `at + U * 64`.
#[inline]
#[target_feature(enable = "avx2,gfni")]
unsafe fn avx2_gfni_step<const M: usize, const U: usize>(
    factors: &[Affine],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]; M],
    at: usize,
) {
    let mut low_sum = [[_mm256_setzero_si256(); U]; M];
    let mut high_sum = [[_mm256_setzero_si256(); U]; M];
    for (source, factors) in sources.iter().zip(factors.as_chunks::<M>().0) {
        let mut low = [_mm256_setzero_si256(); U];
        let mut high = [_mm256_setzero_si256(); U];
        for u in 0..U {
            // SAFETY: within the slice, by the contract.
            (low[u], high[u]) = unsafe { load_group(source, at + u * GROUP_BYTES) };
        }
        for (i, factor) in factors.iter().enumerate() {
            let low_to_low = _mm256_set1_epi64x(factor.low_to_low);
            let high_to_low = _mm256_set1_epi64x(factor.high_to_low);
            let low_to_high = _mm256_set1_epi64x(factor.low_to_high);
            let high_to_high = _mm256_set1_epi64x(factor.high_to_high);
            for u in 0..U {
                let through = |a: __m256i, b: __m256i| {
                    _mm256_xor_si256(
                        _mm256_gf2p8affine_epi64_epi8::<0>(low[u], a),
                        _mm256_gf2p8affine_epi64_epi8::<0>(high[u], b),
                    )
                };
                low_sum[i][u] = _mm256_xor_si256(low_sum[i][u], through(low_to_low, high_to_low));
                high_sum[i][u] = _mm256_xor_si256(high_sum[i][u], through(low_to_high, high_to_high));
            }
        }
    }
    for (i, output) in outputs.iter_mut().enumerate() {
        for u in 0..U {
            // SAFETY: within the slice, by the contract.
            unsafe { store_group(output, at + u * GROUP_BYTES, low_sum[i][u], high_sum[i][u]) };
        }
    }
}

/// Writes `M` rows of the product over `range`. The factors stand input by input, row by row.
///
/// # Safety
/// The processor has the feature; all slices reach at least to the end of `range`, which starts and ends at whole
/// groups.
#[target_feature(enable = "avx2")]
pub unsafe fn avx2<const M: usize>(
    factors: &[Nibbles],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]; M],
    range: Range<usize>,
) {
    let mask = _mm256_set1_epi8(0xf);
    for at in range.step_by(GROUP_BYTES) {
        let mut low_sum = [_mm256_setzero_si256(); M];
        let mut high_sum = [_mm256_setzero_si256(); M];
        for (source, factors) in sources.iter().zip(factors.as_chunks::<M>().0) {
            // SAFETY: within the slice, by the contract.
            let (low, high) = unsafe { load_group(source, at) };
            let nibbles = [
                _mm256_and_si256(low, mask),
                _mm256_and_si256(_mm256_srli_epi64::<4>(low), mask),
                _mm256_and_si256(high, mask),
                _mm256_and_si256(_mm256_srli_epi64::<4>(high), mask),
            ];
            for (i, factor) in factors.iter().enumerate() {
                for (n, nibble) in nibbles.into_iter().enumerate() {
                    let (low_table, high_table) = (table(&factor.low[n]), table(&factor.high[n]));
                    low_sum[i] = _mm256_xor_si256(low_sum[i], _mm256_shuffle_epi8(low_table, nibble));
                    high_sum[i] = _mm256_xor_si256(high_sum[i], _mm256_shuffle_epi8(high_table, nibble));
                }
            }
        }
        for (i, output) in outputs.iter_mut().enumerate() {
            // SAFETY: within the slice, by the contract.
            unsafe { store_group(output, at, low_sum[i], high_sum[i]) };
        }
    }
}

/// Writes `M` rows of the product over `range`. The factors stand input by input, row by row.
///
/// # Safety
/// The processor has the feature; all slices reach at least to the end of `range`, which starts and ends at whole
/// groups.
#[target_feature(enable = "ssse3")]
pub unsafe fn ssse3<const M: usize>(
    factors: &[Nibbles],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]; M],
    range: Range<usize>,
) {
    const HALF: usize = GROUP_BYTES / 2;
    let mask = _mm_set1_epi8(0xf);
    // half a group at a time: sixteen low bytes, and the sixteen high bytes 32 bytes further on
    for at in range.step_by(GROUP_BYTES).flat_map(|group| [group, group + HALF / 2]) {
        let mut low_sum = [_mm_setzero_si128(); M];
        let mut high_sum = [_mm_setzero_si128(); M];
        for (source, factors) in sources.iter().zip(factors.as_chunks::<M>().0) {
            // SAFETY: within the slice, by the contract.
            let (low, high) = unsafe {
                let p = source.as_ptr().add(at);
                (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(HALF).cast()))
            };
            let nibbles = [
                _mm_and_si128(low, mask),
                _mm_and_si128(_mm_srli_epi64::<4>(low), mask),
                _mm_and_si128(high, mask),
                _mm_and_si128(_mm_srli_epi64::<4>(high), mask),
            ];
            for (i, factor) in factors.iter().enumerate() {
                for (n, nibble) in nibbles.into_iter().enumerate() {
                    // SAFETY: sixteen bytes each are there to be read, at any alignment.
                    let (low_table, high_table) = unsafe {
                        (
                            _mm_loadu_si128(factor.low[n].as_ptr().cast()),
                            _mm_loadu_si128(factor.high[n].as_ptr().cast()),
                        )
                    };
                    low_sum[i] = _mm_xor_si128(low_sum[i], _mm_shuffle_epi8(low_table, nibble));
                    high_sum[i] = _mm_xor_si128(high_sum[i], _mm_shuffle_epi8(high_table, nibble));
                }
            }
        }
        for (i, output) in outputs.iter_mut().enumerate() {
            // SAFETY: within the slice, by the contract.
            unsafe {
                let p = output.as_mut_ptr().add(at);
                _mm_storeu_si128(p.cast(), low_sum[i]);
                _mm_storeu_si128(p.add(HALF).cast(), high_sum[i]);
            }
        }
    }
}

/// A table in both halves of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn table(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: sixteen bytes are there to be read, at any alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// The low and the high halves of the group at byte `at`.
///
/// # Safety
/// The processor has the feature; the slice reaches at least to byte `at + 64`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_group(source: &[u8], at: usize) -> (__m256i, __m256i) {
    // SAFETY: by the contract.
    unsafe {
        let p = source.as_ptr().add(at);
        (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast()))
    }
}

/// Stores the halves of the group at byte `at`.
///
/// # Safety
/// The processor has the feature; the slice reaches at least to byte `at + 64`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_group(output: &mut [u8], at: usize, low: __m256i, high: __m256i) {
    // SAFETY: by the contract.
    unsafe {
        let p = output.as_mut_ptr().add(at);
        _mm256_storeu_si256(p.cast(), low);
        _mm256_storeu_si256(p.add(32).cast(), high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_matrices_have_the_order_the_instruction_wants() {
        // the identity of GF2P8AFFINEQB, from its definition
        assert_eq!(affine_matrix(std::array::from_fn(|bit| 1 << bit)), 0x0102_0408_1020_4080);
        // input bit 0 sets output bit 7: bit 0 of byte 0
        assert_eq!(affine_matrix([0x80, 0, 0, 0, 0, 0, 0, 0]), 1);
        // input bit 7 sets output bit 0: bit 7 of byte 7
        assert_eq!(affine_matrix([0, 0, 0, 0, 0, 0, 0, 1]) as u64, 1 << 63);
    }

    #[test]
    fn tables_hold_sums_of_images() {
        let images = std::array::from_fn(|bit| 0x101u16.rotate_left(bit as u32) ^ bit as u16);
        let nibbles = Nibbles::new(images);
        for n in 0..4 {
            assert_eq!((nibbles.low[n][0], nibbles.high[n][0]), (0, 0));
            let sum = images[n * 4] ^ images[n * 4 + 3];
            assert_eq!([nibbles.low[n][9], nibbles.high[n][9]], sum.to_le_bytes());
        }
    }
}
