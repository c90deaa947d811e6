//! The codec against its oracle, `reed-solomon-simd` at the high rate, with every kernel this processor runs.

use proptest::prelude::*;
use reed_solomon_simd::engine::DefaultEngine;
use reed_solomon_simd::rate::{HighRateDecoder, HighRateEncoder, RateDecoder, RateEncoder};

use super::*;
use crate::record::checksum::checksum_parts;

/// Deterministic noise (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// `count` different columns below `columns`, in random order.
    fn columns(&mut self, columns: usize, count: usize) -> Vec<u8> {
        let mut all: Vec<u8> = (0..columns).map(|c| c as u8).collect();
        for i in 0..count {
            all.swap(i, i + self.below(columns - i));
        }
        all.truncate(count);
        all
    }
}

fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|k| k.is_available())
}

fn slices(columns: &[Vec<u8>]) -> Vec<&[u8]> {
    columns.iter().map(|c| &c[..]).collect()
}

fn encode(codec: &Codec, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut parity = vec![vec![0xeeu8; data[0].len()]; codec.parity_columns()];
    codec.encode(&slices(data), &mut parity.iter_mut().map(|c| &mut c[..]).collect::<Vec<_>>());
    parity
}

fn oracle(m: usize, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if data.len() == 1 || m == 0 {
        return vec![data[0].clone(); m];
    }
    let mut encoder = HighRateEncoder::new(data.len(), m, data[0].len(), DefaultEngine::new(), None).unwrap();
    for column in data {
        encoder.add_original_shard(column).unwrap();
    }
    encoder.encode().unwrap().recovery_iter().map(|c| c.to_vec()).collect()
}

/// A stripe by the oracle: data and parity columns.
fn stripe(noise: &mut Noise, k: usize, m: usize, len: usize) -> Vec<Vec<u8>> {
    let mut columns: Vec<Vec<u8>> = (0..k).map(|_| noise.bytes(len)).collect();
    columns.extend(oracle(m, &columns));
    columns
}

/// Rebuilds `wanted` from `present` and compares with the stripe.
fn check_rebuild(codec: &Codec, stripe: &[Vec<u8>], present: &[u8], wanted: &[u8]) {
    let present: Vec<(u8, &[u8])> = present.iter().map(|c| (*c, &stripe[usize::from(*c)][..])).collect();
    let mut outputs = vec![vec![0xeeu8; stripe[0].len()]; wanted.len()];
    let mut want: Vec<(u8, &mut [u8])> = wanted.iter().zip(&mut outputs).map(|(c, o)| (*c, &mut o[..])).collect();
    codec.reconstruct(&present, &mut want).unwrap();
    for (column, output) in wanted.iter().zip(&outputs) {
        let same = *output == stripe[usize::from(*column)];
        assert!(same, "{:?} {}+{}: column {column} of {wanted:?}", codec.kernel, codec.k, codec.m);
    }
}

const GEOMETRIES: [(u8, u8); 16] = [
    (1, 0),
    (3, 0),
    (1, 1),
    (1, 3),
    (2, 1),
    (2, 2),
    (3, 2),
    (4, 2),
    (5, 3),
    (8, 3),
    (2, 7),
    (16, 4),
    (20, 5),
    (100, 20),
    (33, 1),
    (200, 55),
];

#[test]
fn parity_is_byte_for_byte_that_of_the_oracle() {
    let mut noise = Noise(1);
    for (k, m) in GEOMETRIES {
        let lengths: &[usize] = if k > 32 { &[64, 320] } else { &[64, 128, 192, 256, 320, 448, 4096, 65536 + 192] };
        for len in lengths {
            let data: Vec<Vec<u8>> = (0..k).map(|_| noise.bytes(*len)).collect();
            let expected = oracle(m.into(), &data);
            for kernel in kernels() {
                let codec = Codec::with_kernel(k, m, kernel).unwrap();
                assert!(encode(&codec, &data) == expected, "{kernel:?} {k}+{m}, {len} bytes");
            }
        }
    }
}

/// The bytes are part of the disk format: this fails if an update of the oracle changes them.
#[test]
fn parity_is_what_it_was_in_the_first_version() {
    let golden = |k: u8, m: u8| {
        let mut noise = Noise(u64::from(k) << 8 | u64::from(m));
        let data: Vec<Vec<u8>> = (0..k).map(|_| noise.bytes(4096)).collect();
        checksum_parts(&slices(&encode(&Codec::get(k, m), &data)))
    };
    let sums: Vec<u64> =
        [(1, 2), (2, 1), (2, 2), (3, 2), (4, 2), (8, 3), (100, 20)].map(|(k, m)| golden(k, m)).to_vec();
    assert_eq!(sums, GOLDEN, "{sums:#018x?}");
}

const GOLDEN: [u64; 7] = [
    0x98e4_5aa4_306e_fa29,
    0xaabb_cf12_ad9c_ed28,
    0x2536_2208_21b8_93ab,
    0xc123_cbb9_3281_51bc,
    0x5405_115f_425f_8fff,
    0xc5d8_761b_8d34_5afb,
    0x3af1_10a5_1235_09a7,
];

#[test]
fn every_loss_pattern_of_small_geometries_is_rebuilt() {
    let mut noise = Noise(2);
    for (k, m) in [(1, 0), (1, 1), (1, 3), (2, 0), (2, 1), (2, 2), (3, 2), (4, 2), (5, 3), (2, 4), (8, 3)] {
        let columns = k + m;
        let stripe = stripe(&mut noise, k, m, 320);
        for kernel in kernels() {
            let codec = Codec::with_kernel(k as u8, m as u8, kernel).unwrap();
            // every set of survivors large enough; all lost columns are wanted
            for set in 0u32..1 << columns {
                if (set.count_ones() as usize) < k {
                    continue;
                }
                let (present, lost): (Vec<u8>, Vec<u8>) = (0..columns as u8).partition(|c| set >> c & 1 != 0);
                check_rebuild(&codec, &stripe, &present, &lost);
            }
        }
    }
}

#[test]
fn every_subset_of_the_lost_columns_is_rebuilt() {
    let mut noise = Noise(3);
    let (k, m) = (3, 3);
    let stripe = stripe(&mut noise, k, m, 192);
    for kernel in kernels() {
        let codec = Codec::with_kernel(k as u8, m as u8, kernel).unwrap();
        for set in 0u32..1 << (k + m) {
            if set.count_ones() as usize != k {
                continue;
            }
            let present: Vec<u8> = (0..6).filter(|c| set >> c & 1 != 0).collect();
            // present columns may be wanted too: they are copied
            for wanted in 0u32..1 << (k + m) {
                let wanted: Vec<u8> = (0..6).filter(|c| wanted >> c & 1 != 0).collect();
                check_rebuild(&codec, &stripe, &present, &wanted);
            }
        }
    }
}

#[test]
fn random_losses_of_large_geometries_are_rebuilt() {
    let mut noise = Noise(4);
    for (k, m) in [(16, 4), (20, 5), (30, 30), (100, 20), (2, 100), (200, 55), (2, 253), (254, 1)] {
        let stripe = stripe(&mut noise, k, m, 128);
        let kernels: Vec<Kernel> = kernels().collect();
        for round in 0..12 {
            let codec = Codec::with_kernel(k as u8, m as u8, kernels[round % kernels.len()]).unwrap();
            let count = if round < 4 { m } else { 1 + noise.below(m) };
            let lost = noise.columns(k + m, count);
            let present: Vec<u8> = noise.columns(k + m, k + m).into_iter().filter(|c| !lost.contains(c)).collect();
            check_rebuild(&codec, &stripe, &present, &lost);
        }
    }
}

#[test]
fn the_oracle_decodes_what_we_encode() {
    let mut noise = Noise(5);
    for (k, m) in [(2, 2), (4, 2), (8, 3), (20, 5)] {
        let data: Vec<Vec<u8>> = (0..k).map(|_| noise.bytes(512)).collect();
        let parity = encode(&Codec::get(k as u8, m as u8), &data);
        let mut decoder = HighRateDecoder::new(k, m, 512, DefaultEngine::new(), None).unwrap();
        let lost = noise.columns(k, m.min(k));
        for j in (0..k).filter(|j| !lost.contains(&(*j as u8))) {
            decoder.add_original_shard(j, &data[j]).unwrap();
        }
        for (i, column) in parity.iter().enumerate().take(lost.len()) {
            decoder.add_recovery_shard(i, column).unwrap();
        }
        let restored = decoder.decode().unwrap();
        for j in lost {
            assert_eq!(restored.restored_original(j.into()).unwrap(), data[usize::from(j)]);
        }
    }
}

#[test]
fn impossible_geometries_are_refused() {
    for (k, m) in [(0, 0), (0, 3), (255, 1), (200, 56), (255, 255)] {
        assert_eq!(Codec::new(k, m).unwrap_err().kind(), ErrorKind::Invalid);
    }
    for (k, m) in [(1, 0), (255, 0), (1, 254), (254, 1), (128, 127)] {
        let codec = Codec::new(k, m).unwrap();
        assert_eq!((codec.data_columns(), codec.parity_columns()), (k.into(), m.into()));
        assert_eq!(codec.columns(), usize::from(k) + usize::from(m));
    }
}

#[test]
fn requests_that_make_no_sense_are_refused_and_write_nothing() {
    let codec = Codec::get(3, 2);
    let (a, b, short, odd) = (vec![1u8; 128], vec![2u8; 128], vec![3u8; 64], vec![4u8; 100]);
    let (a, b, short, odd) = (&a[..], &b[..], &short[..], &odd[..]);
    let refused = |present: &[(u8, &[u8])], wanted: &[(u8, usize)]| {
        let mut outputs: Vec<Vec<u8>> = wanted.iter().map(|(_, len)| vec![9u8; *len]).collect();
        let mut want: Vec<(u8, &mut [u8])> =
            wanted.iter().zip(&mut outputs).map(|((c, _), o)| (*c, &mut o[..])).collect();
        let kind = codec.reconstruct(present, &mut want).unwrap_err().kind();
        assert!(outputs.iter().flatten().all(|byte| *byte == 9));
        kind
    };
    assert_eq!(refused(&[], &[(0, 128)]), ErrorKind::Degraded);
    assert_eq!(refused(&[(0, a), (4, b)], &[(1, 128)]), ErrorKind::Degraded);
    // even what is present is not handed out by a request that cannot be served
    assert_eq!(refused(&[(0, a), (4, b)], &[(0, 128)]), ErrorKind::Degraded);
    assert_eq!(refused(&[(0, a), (4, b), (4, b)], &[(1, 128)]), ErrorKind::Invalid);
    assert_eq!(refused(&[(0, a), (4, b), (5, a)], &[(1, 128)]), ErrorKind::Invalid);
    assert_eq!(refused(&[(0, a), (4, b), (255, a)], &[(1, 128)]), ErrorKind::Invalid);
    assert_eq!(refused(&[(0, a), (4, b), (2, a)], &[(5, 128)]), ErrorKind::Invalid);
    assert_eq!(refused(&[(0, a), (4, b), (2, a)], &[(0, 128), (1, 128), (1, 128)]), ErrorKind::Invalid);
    assert_eq!(refused(&[(0, a), (4, b), (2, short)], &[(1, 128)]), ErrorKind::Invalid);
    assert_eq!(refused(&[(0, a), (4, b), (2, a)], &[(0, 128), (1, 64)]), ErrorKind::Invalid);
    assert_eq!(refused(&[(0, odd), (1, odd), (2, odd)], &[(3, 100)]), ErrorKind::Invalid);
    // nothing wanted, and nothing in the columns, are fine
    codec.reconstruct(&[(0, a), (4, b), (2, a)], &mut []).unwrap();
    codec.reconstruct(&[(0, &[]), (4, &[]), (2, &[])], &mut [(1, &mut [])]).unwrap();
}

#[test]
fn encoding_refuses_slices_of_another_shape() {
    let bytes = vec![0u8; 128];
    let codec = Codec::get(2, 1);
    let panics = |data: &[&[u8]], lengths: &[usize]| {
        let mut parity: Vec<Vec<u8>> = lengths.iter().map(|len| vec![0; *len]).collect();
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| codec.encode(data, &mut parity))).is_err()
    };
    assert!(!panics(&[&bytes, &bytes], &[128]));
    assert!(panics(&[&bytes], &[128]));
    assert!(panics(&[&bytes, &bytes], &[128, 128]));
    assert!(panics(&[&bytes, &bytes], &[64]));
    assert!(panics(&[&bytes, &bytes[..64]], &[128]));
    assert!(panics(&[&bytes[..100], &bytes[..100]], &[100]));
}

#[test]
fn codecs_and_matrices_are_shared_between_threads() {
    assert!(Arc::ptr_eq(&Codec::get(6, 3), &Codec::get(6, 3)));
    let stripe = stripe(&mut Noise(6), 6, 3, 256);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let stripe = &stripe;
            scope.spawn(move || {
                let mut noise = Noise(100 + seed);
                for _ in 0..200 {
                    let lost = noise.columns(9, 3);
                    let present: Vec<u8> = (0..9).filter(|c| !lost.contains(c)).collect();
                    check_rebuild(&Codec::get(6, 3), stripe, &present, &lost);
                }
            });
        }
    });
}

/// Down to the largest matrix there is: 127 columns lost of 128.
#[test]
fn the_matrix_of_a_pattern_is_computed_once() {
    for (k, m) in [(4u8, 2u8), (128, 127)] {
        for kernel in kernels() {
            let codec = Codec::with_kernel(k, m, kernel).unwrap();
            let mut pattern = Pattern::default();
            (m..k + m).for_each(|column| assert!(pattern.survivors.insert(column)));
            (0..m).for_each(|column| assert!(pattern.wanted.insert(column)));
            let matrix = codec.rebuilder(pattern);
            assert!(Arc::ptr_eq(&matrix, &codec.rebuilder(pattern)), "{kernel:?} {k}+{m}");
            assert!(matrix.memory_bytes() as u64 <= PATTERN_CACHE_BYTES / 2);
        }
    }
}

#[test]
fn column_sets_hold_every_column() {
    let mut set = ColumnSet::default();
    for column in [0, 63, 64, 127, 200, 254] {
        assert!(set.insert(column));
        assert!(!set.insert(column));
    }
    assert_eq!(set.to_vec(), [0, 63, 64, 127, 200, 254]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Any geometry, any data, any length, any losses, any kernel, any order of asking; encoded in pieces.
    #[test]
    fn what_is_lost_comes_back(
        k in 1usize..24,
        m in 0usize..8,
        groups in 1usize..1025,
        cut in any::<proptest::sample::Index>(),
        kernel in any::<proptest::sample::Index>(),
        seed: u64,
    ) {
        let mut noise = Noise(seed);
        let len = groups.min(16384 / (k + m)) * 64;
        let kernels: Vec<Kernel> = kernels().collect();
        let codec = Codec::with_kernel(k as u8, m as u8, *kernel.get(&kernels)).unwrap();
        let stripe = stripe(&mut noise, k, m, len);

        // column pieces are coded independently of each other
        let cut = cut.index(len / 64 + 1) * 64;
        let piece = |from: usize, to: usize| encode(&codec, &stripe[..k].iter().map(|c| c[from..to].to_vec()).collect::<Vec<_>>());
        for (column, (head, tail)) in stripe[k..].iter().zip(piece(0, cut).iter().zip(piece(cut, len))) {
            prop_assert!(column[..cut] == head[..] && column[cut..] == tail[..]);
        }

        let lost_count = noise.below(m + 1);
        let lost = noise.columns(k + m, lost_count);
        let present: Vec<u8> = noise.columns(k + m, k + m).into_iter().filter(|c| !lost.contains(c)).collect();
        let wanted_count = noise.below(k + m) + 1;
        let wanted = noise.columns(k + m, wanted_count);
        check_rebuild(&codec, &stripe, &present, &lost);
        check_rebuild(&codec, &stripe, &present[..k], &wanted);
    }
}
