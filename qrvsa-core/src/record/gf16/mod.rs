//! Arithmetic over GF(2^16), as far as the erasure code needs it: products, inverses, the generator of a geometry and
//! the matrix that rebuilds lost columns.
//!
//! # Why a matrix
//!
//! The bytes of parity are defined by the crate `reed-solomon-simd`, always at its high rate (its default picks a rate by
//! geometry, and the two rates give different bytes). Its encoder is fast; each of its decodes, however, costs two
//! transforms over all 65,536 field elements, 200 microseconds whatever the size of the fragments. A Reed-Solomon code
//! is linear, so the same bytes come out of a k-column matrix, and for the small geometries of a disk pool a plain
//! matrix product ([`kernel`]) beats the transform at encoding too.
//!
//! * The generator is read off the crate with a single small encode, see [`generator`].
//! * The matrix for a loss pattern comes from inverting an e x e part of the generator, where e is the number of lost
//!   data columns: some microseconds for ordinary geometries, see [`rebuild_rows`].
//!
//! # The field
//!
//! Elements are written in the crate's Cantor basis; addition is XOR, and the element 1 is `0x0001`. Products go through
//! the crate's logarithm tables (256 KiB). In memory 32 elements take 64 bytes: their 32 low bytes, then their 32 high
//! bytes. This module is indifferent to that but for [`generator`]; the kernels are built on it.
//!
//! # Invariants
//!
//! Matrices are row-major `Vec<u16>`. The geometries are those the codec allows: k >= 2, m >= 1, k + m <= 255, for which
//! every square part of a generator is invertible (the code is maximum distance separable).

pub mod kernel;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use reed_solomon_simd::engine::{Naive, tables};
use reed_solomon_simd::rate::{HighRateEncoder, RateEncoder};

/// Bytes that hold [`GROUP_ELEMENTS`] elements: the least unit of every length.
pub const GROUP_BYTES: usize = 64;
/// Elements in a group: low bytes first, high bytes after.
const GROUP_ELEMENTS: usize = GROUP_BYTES / 2;
/// Order of the multiplicative group.
const ORDER: u32 = 65535;

/// The product of two elements.
pub fn mul(a: u16, b: u16) -> u16 {
    if a == 0 || b == 0 {
        return 0;
    }
    let tables = tables::get_exp_log();
    let sum = u32::from(tables.log[usize::from(a)]) + u32::from(tables.log[usize::from(b)]);
    tables.exp[(sum % ORDER) as usize]
}

/// The multiplicative inverse of an element; none for zero.
pub fn invert_element(a: u16) -> Option<u16> {
    if a == 0 {
        return None;
    }
    let tables = tables::get_exp_log();
    let log = u32::from(tables.log[usize::from(a)]);
    Some(tables.exp[((ORDER - log % ORDER) % ORDER) as usize])
}

/// Multiplication by `factor` as a linear map over GF(2): the images of the sixteen input bits, lowest first.
pub fn bit_images(factor: u16) -> [u16; 16] {
    std::array::from_fn(|bit| mul(factor, 1 << bit))
}

/// The m x k generator of a geometry: parity column i is the sum over j of `[i * k + j]` times data column j.
///
/// Linearity lets one encode answer for all columns: data column j holds the element 1 in lane j and zeros elsewhere,
/// so that lane j of parity column i is the wanted factor. The crate's table-free engine serves, which keeps the 8 MiB
/// of tables of its faster engines out of memory.
pub fn generator(k: usize, m: usize) -> Vec<u16> {
    let bytes = GROUP_BYTES * k.div_ceil(GROUP_ELEMENTS);
    let at = |lane: usize| lane / GROUP_ELEMENTS * GROUP_BYTES + lane % GROUP_ELEMENTS;
    let mut encoder = HighRateEncoder::new(k, m, bytes, Naive::new(), None)
        .expect("the high rate takes every geometry up to 255 columns and even lengths");
    let mut probe = vec![0u8; bytes];
    for lane in 0..k {
        probe[at(lane)] = 1;
        encoder.add_original_shard(&probe).expect("k columns of the length announced");
        probe[at(lane)] = 0;
    }
    let parity = encoder.encode().expect("all k columns were added");
    let mut matrix = Vec::with_capacity(m * k);
    for row in parity.recovery_iter() {
        matrix.extend((0..k).map(|lane| u16::from_le_bytes([row[at(lane)], row[at(lane) + GROUP_ELEMENTS]])));
    }
    assert_eq!(matrix.len(), m * k);
    matrix
}

/// The inverse of an n x n matrix by Gauss-Jordan elimination; none if the matrix is singular.
pub fn invert(n: usize, mut matrix: Vec<u16>) -> Option<Vec<u16>> {
    assert_eq!(matrix.len(), n * n);
    let mut inverse = vec![0u16; n * n];
    for i in 0..n {
        inverse[i * n + i] = 1;
    }
    for pivot in 0..n {
        let row = (pivot..n).find(|row| matrix[row * n + pivot] != 0)?;
        if row != pivot {
            for j in 0..n {
                matrix.swap(row * n + j, pivot * n + j);
                inverse.swap(row * n + j, pivot * n + j);
            }
        }
        let scale = invert_element(matrix[pivot * n + pivot])?;
        for j in 0..n {
            matrix[pivot * n + j] = mul(matrix[pivot * n + j], scale);
            inverse[pivot * n + j] = mul(inverse[pivot * n + j], scale);
        }
        for row in (0..n).filter(|row| *row != pivot) {
            let factor = matrix[row * n + pivot];
            if factor != 0 {
                for j in 0..n {
                    matrix[row * n + j] ^= mul(factor, matrix[pivot * n + j]);
                    inverse[row * n + j] ^= mul(factor, inverse[pivot * n + j]);
                }
            }
        }
    }
    Some(inverse)
}

/// The matrix that rebuilds `wanted` columns from `survivors`: one row of k factors per wanted column, in the order
/// given, the factors in the order of the survivors.
///
/// `survivors` are k different columns in ascending order, `wanted` are columns not among them; data columns are 0 to
/// k - 1, parity columns follow. A lost parity column is expressed by the survivors directly, so rebuilding it takes
/// no second pass over rebuilt data.
pub fn rebuild_rows(k: usize, generator: &[u16], survivors: &[u8], wanted: &[u8]) -> Vec<u16> {
    assert_eq!(survivors.len(), k);
    let split = survivors.partition_point(|column| usize::from(*column) < k);
    let (data, parity) = survivors.split_at(split);
    let lost: Vec<usize> = (0..k).filter(|j| data.binary_search(&(*j as u8)).is_err()).collect();
    let e = lost.len();
    assert_eq!(parity.len(), e, "survivors are k different columns");
    let factor = |row: usize, column: usize| generator[row * k + column];

    // Each surviving parity column p is G[p, data] data + G[p, lost] lost, so that
    // lost = inverse(G[parity, lost]) (p + G[parity, data] data).
    let system = parity.iter().flat_map(|p| lost.iter().map(move |l| factor(usize::from(*p) - k, *l))).collect();
    let inverse = invert(e, system).expect("every square part of a Reed-Solomon generator is invertible");

    let mut rows = Vec::with_capacity(wanted.len() * k);
    for column in wanted.iter().map(|c| usize::from(*c)) {
        // The wanted column as a sum over the lost data columns (and, for parity, over the surviving ones), ...
        let over_lost = |t: usize| if column < k { u16::from(lost[t] == column) } else { factor(column - k, lost[t]) };
        let over_data = |j: usize| if column < k { 0 } else { factor(column - k, j) };
        // ... and with the lost ones expressed by the survivors.
        let over_parity: Vec<u16> =
            (0..e).map(|s| (0..e).fold(0, |sum, t| sum ^ mul(over_lost(t), inverse[t * e + s]))).collect();
        rows.extend(data.iter().map(|j| usize::from(*j)).map(|j| {
            let through = |sum, (p, f): (&u8, &u16)| sum ^ mul(*f, factor(usize::from(*p) - k, j));
            parity.iter().zip(&over_parity).fold(over_data(j), through)
        }));
        rows.extend_from_slice(&over_parity);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_is_one_and_zero_is_zero() {
        for a in 0..=u16::MAX {
            assert_eq!(mul(a, 1), a);
            assert_eq!(mul(a, 0), 0);
            match invert_element(a) {
                Some(inverse) => assert_eq!(mul(a, inverse), 1),
                None => assert_eq!(a, 0),
            }
        }
    }

    #[test]
    fn one_parity_column_is_a_plain_sum() {
        for k in [2, 3, 16, 33, 254] {
            assert!(generator(k, 1).iter().all(|f| *f == 1));
        }
    }

    #[test]
    fn singular_matrices_have_no_inverse() {
        assert_eq!(invert(1, vec![0]), None);
        assert_eq!(invert(2, vec![5, 7, 5, 7]), None);
        assert_eq!(invert(2, vec![3, mul(3, 9), 4, mul(4, 9)]), None);
        assert_eq!(invert(0, vec![]), Some(vec![]));
        // a zero on the diagonal is not a singular matrix
        assert_eq!(invert(2, vec![0, 1, 1, 0]), Some(vec![0, 1, 1, 0]));
    }

    #[test]
    fn rebuilding_parity_from_all_data_is_the_generator() {
        let generator = generator(5, 3);
        assert_eq!(rebuild_rows(5, &generator, &[0, 1, 2, 3, 4], &[5, 6, 7]), generator);
    }

    proptest! {
        #[test]
        fn products_follow_the_laws_of_a_field(a: u16, b: u16, c: u16) {
            prop_assert_eq!(mul(a, b), mul(b, a));
            prop_assert_eq!(mul(mul(a, b), c), mul(a, mul(b, c)));
            prop_assert_eq!(mul(a, b ^ c), mul(a, b) ^ mul(a, c));
            let images = bit_images(a);
            let sum = (0..16).filter(|bit| b >> bit & 1 != 0).fold(0, |sum, bit| sum ^ images[bit]);
            prop_assert_eq!(sum, mul(a, b));
        }

        #[test]
        fn a_matrix_times_its_inverse_is_the_identity(n in 1usize..9, seed in proptest::collection::vec(any::<u16>(), 64)) {
            let matrix = seed[..n * n].to_vec();
            if let Some(inverse) = invert(n, matrix.clone()) {
                for i in 0..n {
                    for j in 0..n {
                        let sum = (0..n).fold(0, |sum, t| sum ^ mul(matrix[i * n + t], inverse[t * n + j]));
                        prop_assert_eq!(sum, u16::from(i == j));
                    }
                }
            }
        }
    }
}
