//! How fast the erasure code is, beside its named peer: `reed-solomon-simd` at the high rate, which defines the bytes.
//!
//! One thread; GB/s (10^9 bytes) of data columns; hot caches for the smaller sizes; best of several rounds. Lost are the
//! first min(k, m) data columns. The peer's encoder and decoder are reused from call to call, as it recommends; its API
//! copies the columns in, which counts, and lends the results, so that nothing is copied out.
//!
//! Run with `cargo bench -p qrvsa-core --bench codec`. Takes a few seconds. Without `--bench` (as `cargo test` runs it)
//! every case is run only once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use qrvsa_core::buf::AlignedBuf;
use qrvsa_core::record::erasure::Codec;
use qrvsa_core::record::gf16::kernel::Kernel;
use reed_solomon_simd::engine::DefaultEngine;
use reed_solomon_simd::rate::{HighRateDecoder, HighRateEncoder, RateDecoder, RateEncoder};

const GEOMETRIES: [(u8, u8); 3] = [(2, 2), (4, 2), (8, 3)];
const FRAGMENT_KIB: [usize; 3] = [4, 64, 256];

struct Bench {
    rounds: u32,
    round: Duration,
}

impl Bench {
    /// Seconds per call, best round.
    fn seconds(&self, mut call: impl FnMut()) -> f64 {
        call();
        let mut best = f64::INFINITY;
        for _ in 0..self.rounds {
            let (start, mut calls) = (Instant::now(), 0u32);
            while calls == 0 || start.elapsed() < self.round {
                // so that reading the clock does not count
                for _ in 0..8 {
                    call();
                }
                calls += 8;
            }
            best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
        }
        best
    }

    /// (encode, decode) of the codec, in GB/s.
    fn ours(&self, codec: &Codec, stripe: &mut Stripe) -> (f64, f64) {
        let (k, lost) = (codec.data_columns(), codec.data_columns().min(codec.parity_columns()));
        let data: Vec<&[u8]> = stripe.data.iter().map(|c| &c[..]).collect();
        let mut parity: Vec<&mut [u8]> = stripe.parity.iter_mut().map(|c| &mut c[..]).collect();
        let encode = self.seconds(|| codec.encode(black_box(&data), black_box(&mut parity)));

        let present: Vec<(u8, &[u8])> = (0..=u8::MAX)
            .zip(stripe.data.iter().chain(&stripe.parity))
            .map(|(c, bytes)| (c, &bytes[..]))
            .skip(lost)
            .take(k)
            .collect();
        let mut rebuilt: Vec<(u8, &mut [u8])> =
            (0..=u8::MAX).zip(stripe.rebuilt.iter_mut()).map(|(c, bytes)| (c, &mut bytes[..])).collect();
        let decode = self.seconds(|| {
            codec.reconstruct(black_box(&present), black_box(&mut rebuilt)).expect("enough columns are present");
        });
        assert!(rebuilt.iter().zip(&data).all(|((_, rebuilt), data)| rebuilt == data), "rebuilt bytes are right");
        let bytes = (k * data[0].len()) as f64;
        (bytes / encode / 1e9, bytes / decode / 1e9)
    }

    /// (encode, decode) of the peer, in GB/s.
    fn peer(&self, k: usize, m: usize, stripe: &Stripe) -> (f64, f64) {
        let len = stripe.data[0].len();
        let mut encoder =
            HighRateEncoder::new(k, m, len, DefaultEngine::new(), None).expect("the peer takes the geometry");
        let encode = self.seconds(|| {
            for column in black_box(&stripe.data) {
                encoder.add_original_shard(&column[..]).expect("as many as announced");
            }
            black_box(encoder.encode().expect("all were added").recovery(0));
        });
        let mut decoder =
            HighRateDecoder::new(k, m, len, DefaultEngine::new(), None).expect("the peer takes the geometry");
        let lost = k.min(m);
        let decode = self.seconds(|| {
            for j in lost..k {
                decoder.add_original_shard(j, black_box(&stripe.data[j][..])).expect("as many as announced");
            }
            for i in 0..lost {
                decoder.add_recovery_shard(i, black_box(&stripe.parity[i][..])).expect("as many as announced");
            }
            black_box(decoder.decode().expect("enough were added").restored_original(0));
        });
        let bytes = (k * len) as f64;
        (bytes / encode / 1e9, bytes / decode / 1e9)
    }
}

struct Stripe {
    data: Vec<AlignedBuf>,
    parity: Vec<AlignedBuf>,
    rebuilt: Vec<AlignedBuf>,
}

impl Stripe {
    fn new(k: usize, m: usize, len: usize) -> Stripe {
        let zeroed = |count| (0..count).map(|_| AlignedBuf::zeroed(len)).collect::<Vec<_>>();
        let mut stripe = Stripe { data: zeroed(k), parity: zeroed(m), rebuilt: zeroed(k.min(m)) };
        let mut state = 1u64;
        for byte in stripe.data.iter_mut().flat_map(|c| c.iter_mut()) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (state >> 56) as u8;
        }
        stripe
    }
}

fn main() {
    let measured = std::env::args().any(|arg| arg == "--bench");
    let (rounds, round) = if measured { (5, Duration::from_millis(12)) } else { (1, Duration::ZERO) };
    let bench = Bench { rounds, round };

    println!("GB/s of data; kernel {:?}; peer: reed-solomon-simd, high rate", Kernel::best());
    println!("geometry  fragment |  encode    peer  ratio |  decode    peer  ratio");
    for (k, m) in GEOMETRIES {
        for kib in FRAGMENT_KIB {
            let mut stripe = Stripe::new(k.into(), m.into(), kib * 1024);
            let (encode, decode) = bench.ours(&Codec::get(k, m), &mut stripe);
            let (peer_encode, peer_decode) = bench.peer(k.into(), m.into(), &stripe);
            println!(
                "{:>8}  {kib:>4} KiB | {encode:>7.1} {peer_encode:>7.1} {:>6.1} | {decode:>7.1} {peer_decode:>7.2} {:>6.0}",
                format!("{k}+{m}"),
                encode / peer_encode,
                decode / peer_decode
            );
        }
    }

    println!("\nthe other kernels, fragments of 64 KiB: encode / decode");
    for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
        print!("{:>12}", format!("{kernel:?}"));
        for (k, m) in [(2, 1), (2, 2), (4, 2), (8, 3), (16, 4), (20, 5)] {
            let mut stripe = Stripe::new(k.into(), m.into(), 64 * 1024);
            let codec = Codec::with_kernel(k, m, kernel).expect("the kernel is available");
            let (encode, decode) = bench.ours(&codec, &mut stripe);
            print!("  {k}+{m}: {encode:.1}/{decode:.1}");
        }
        println!();
    }

    println!(
        "\none-time costs, microseconds: a new geometry, its first encode, its first rebuild of min(k, m) columns"
    );
    for (k, m) in [(2, 2), (4, 2), (8, 3), (20, 5), (100, 20), (200, 55)] {
        let mut stripe = Stripe::new(k.into(), m.into(), 4096);
        let start = Instant::now();
        let codec = Codec::new(k, m).expect("a possible geometry");
        let made = start.elapsed();
        let data: Vec<&[u8]> = stripe.data.iter().map(|c| &c[..]).collect();
        let mut parity: Vec<&mut [u8]> = stripe.parity.iter_mut().map(|c| &mut c[..]).collect();
        let start = Instant::now();
        codec.encode(&data, &mut parity);
        let encoded = start.elapsed();
        // not the pattern measured above, which is known by now
        let lost: Vec<u8> = (1..k.min(m)).chain([k]).collect();
        let present: Vec<(u8, &[u8])> = (0..=u8::MAX)
            .zip(stripe.data.iter().chain(&stripe.parity))
            .filter(|(c, _)| !lost.contains(c))
            .map(|(c, bytes)| (c, &bytes[..]))
            .collect();
        let mut want: Vec<(u8, &mut [u8])> =
            lost.iter().zip(stripe.rebuilt.iter_mut()).map(|(c, bytes)| (*c, &mut bytes[..])).collect();
        let start = Instant::now();
        codec.reconstruct(&present, &mut want).expect("enough columns are present");
        let rebuilt = start.elapsed();
        let micros = |d: Duration| d.as_secs_f64() * 1e6;
        println!("{:>8}: {:>8.1} {:>8.1} {:>8.1}", format!("{k}+{m}"), micros(made), micros(encoded), micros(rebuilt));
    }
}
