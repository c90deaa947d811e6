//! The simulator's misbehaviour, piece by piece, and its determinism.

use super::*;
use crate::buf::BufSlice;
use crate::device::IoBatch;
use crate::env::{Clock, Random};
use std::collections::BTreeSet;

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;

fn disk() -> (Arc<dyn Device>, SimControl) {
    SimDevice::create(SimConfig::new(SIZE))
}

fn run(device: &Arc<dyn Device>, requests: Vec<Request>) -> Vec<Outcome> {
    let mut batch = IoBatch::new();
    for request in requests {
        batch.push(device, request);
    }
    batch.wait(Duration::from_secs(1000))
}

fn put(block: u64, fill: u8, durable: bool) -> Request {
    let slices = vec![BufSlice::whole(Arc::new(AlignedBuf::from_slice(&[fill; BLOCK_SIZE])))];
    Request::Write { offset: block * BLOCK, slices, durable }
}

fn get(block: u64) -> Request {
    Request::Read { offset: block * BLOCK, bufs: vec![AlignedBuf::zeroed(BLOCK_SIZE)] }
}

fn ok(device: &Arc<dyn Device>, request: Request) {
    let outcome = run(device, vec![request]).pop().unwrap();
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

fn write(device: &Arc<dyn Device>, block: u64, fill: u8) {
    ok(device, put(block, fill, false));
}

/// The bytes of a block, sector by sector (every sector holds one value).
fn sectors(device: &Arc<dyn Device>, block: u64) -> Vec<u8> {
    match run(device, vec![get(block)]).pop().unwrap() {
        Outcome::Done(bufs) => {
            let sector = |s: &[u8]| {
                assert!(s.iter().all(|b| *b == s[0]));
                s[0]
            };
            bufs[0].chunks(SECTOR_BYTES).map(sector).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn errno(device: &Arc<dyn Device>, request: Request) -> i32 {
    match run(device, vec![request]).pop().unwrap() {
        Outcome::Failed(error) => error.errno,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flush_makes_durable_what_was_complete_before_it() {
    let (device, control) = disk();
    write(&device, 1, 1);
    ok(&device, Request::Flush);
    write(&device, 2, 2);
    ok(&device, put(3, 3, true));
    // In one submission, the flush covers nothing of it.
    run(&device, vec![put(4, 4, false), Request::Flush, put(5, 5, false)]);
    assert_eq!(control.unflushed().len(), 2);
    assert_eq!(control.medium().written_blocks(), 3);
    assert_eq!(control.seen().written_blocks(), 5);
    control.crash(CrashMode::LoseAll);
    assert_eq!(errno(&device, get(1)), libc::EIO);
    assert!(device.check_presence().is_err());
    control.restart();
    assert!(device.check_presence().is_ok());
    let first: Vec<u8> = (1..=5).map(|b| sectors(&device, b)[0]).collect();
    assert_eq!(first, [1, 2, 3, 0, 0]);
}

#[test]
fn every_subset_of_unflushed_writes_can_survive() {
    let mut seen = BTreeSet::new();
    for mask in 0..16u64 {
        let (device, control) = disk();
        write(&device, 0, 9);
        ok(&device, Request::Flush);
        // Two of them overlap.
        for (block, fill) in [(0, 1), (1, 2), (0, 3), (2, 4)] {
            write(&device, block, fill);
        }
        control.crash(CrashMode::Mask(mask));
        control.restart();
        let state: Vec<u8> = (0..3).map(|b| sectors(&device, b)[0]).collect();
        let expected = match mask & 5 {
            0 => 9,
            1 => 1,
            _ => 3,
        };
        assert_eq!(state, [expected, if mask & 2 != 0 { 2 } else { 0 }, if mask & 8 != 0 { 4 } else { 0 }]);
        seen.insert(state);
        assert!(control.unflushed().is_empty());
    }
    assert_eq!(seen.len(), 12);
}

#[test]
fn writes_tear_at_sectors() {
    let (device, control) = disk();
    write(&device, 0, 1);
    ok(&device, Request::Flush);
    write(&device, 0, 2);
    write(&device, 1, 3);
    control.crash(CrashMode::Torn { mask: 2, torn: 0, sectors: 3 });
    control.restart();
    assert_eq!(sectors(&device, 0), [2, 2, 2, 1, 1, 1, 1, 1]);
    assert_eq!(sectors(&device, 1), [3; 8]);

    control.inject(Fault::new(Effect::Torn { sectors: 2, errno: None }).on(Operation::Write).once());
    write(&device, 0, 5);
    assert_eq!(sectors(&device, 0), [5, 5, 2, 1, 1, 1, 1, 1]);
    control.inject(Fault::new(Effect::Torn { sectors: 1, errno: Some(libc::EIO) }).once());
    assert_eq!(errno(&device, put(0, 6, false)), libc::EIO);
    assert_eq!(sectors(&device, 0), [6, 5, 2, 1, 1, 1, 1, 1]);
    write(&device, 0, 7);
    control.crash_with(|change, sector| change == 2 && sector % 2 == 1);
    control.restart();
    assert_eq!(sectors(&device, 0), [2, 7, 2, 7, 1, 7, 1, 7]);
}

#[test]
fn random_crashes_are_drawn_from_their_seed() {
    let outcome = |seed| {
        let (device, control) = disk();
        for block in 0..20 {
            write(&device, block, 1);
        }
        control.crash(CrashMode::Random { seed });
        control.restart();
        (0..20).map(|b| sectors(&device, b)).collect::<Vec<_>>()
    };
    assert_eq!(outcome(5), outcome(5));
    assert_ne!(outcome(5), outcome(6));
    let all: Vec<Vec<u8>> = (0..20).flat_map(outcome).collect();
    let count = |f: &dyn Fn(&Vec<u8>) -> bool| all.iter().filter(|s| f(s)).count();
    assert!(count(&|s| s == &[1; 8]) > 100);
    assert!(count(&|s| s == &[0; 8]) > 50);
    assert!(count(&|s| s.contains(&0) && s.contains(&1)) > 50);
}

#[test]
fn a_durable_write_is_not_undone_by_an_older_unflushed_one() {
    let (device, control) = disk();
    write(&device, 0, 1);
    ok(&device, put(0, 2, true));
    assert_eq!(sectors(&device, 0), [2; 8]);
    control.crash(CrashMode::KeepAll);
    control.restart();
    assert_eq!(sectors(&device, 0), [2; 8]);
}

#[test]
fn power_fails_after_the_nth_change_on_any_disk() {
    for n in 0..6 {
        let power = PowerSwitch::new();
        let config = SimConfig { power: power.clone(), ..SimConfig::new(SIZE) };
        let disks: Vec<_> = (0..2).map(|_| SimDevice::create(config.clone())).collect();
        power.cut_after(n);
        let mut done = 0;
        for (i, request) in [put(0, 1, false), put(0, 1, false), Request::Flush, put(1, 2, false), put(1, 2, false)]
            .into_iter()
            .enumerate()
        {
            done += run(&disks[i % 2].0, vec![request]).iter().filter(|o| matches!(o, Outcome::Done(_))).count() as u64;
        }
        assert_eq!(done, n.min(5));
        assert_eq!(power.changes(), done);
        assert_eq!(power.is_off(), n < 5);
        for (device, control) in &disks {
            if n < 5 {
                assert_eq!(errno(device, get(0)), libc::EIO);
            }
            control.crash(CrashMode::LoseAll);
        }
        disks[0].1.restart();
        assert_eq!(errno(&disks[1].0, get(0)), libc::EIO, "each disk is restarted by itself");
        disks[1].1.restart();
        assert_eq!(sectors(&disks[0].0, 0)[0], u8::from(n >= 3), "flushed by the third change");
        assert_eq!(sectors(&disks[1].0, 0)[0], 0, "never flushed");
    }
}

#[test]
fn a_write_caught_by_the_power_failure_may_have_landed() {
    for (mode, expected) in
        [(CrashMode::KeepAll, [2, 3, 0]), (CrashMode::LoseAll, [0, 0, 0]), (CrashMode::Mask(4), [0, 3, 0])]
    {
        let (device, control) = disk();
        write(&device, 0, 1);
        control.power().cut_after(0);
        // Both were on their way; the third comes when the power is off already.
        let outcomes = run(&device, vec![put(0, 2, false), put(1, 3, true)]);
        assert!(outcomes.iter().all(|o| matches!(o, Outcome::Failed(_))));
        assert_eq!(errno(&device, put(2, 4, false)), libc::EIO);
        let acknowledged: Vec<bool> = control.unflushed().iter().map(|u| u.acknowledged).collect();
        assert_eq!(acknowledged, [true, false, false]);
        control.crash(mode);
        control.restart();
        let state: Vec<u8> = (0..3).map(|b| sectors(&device, b)[0]).collect();
        assert_eq!(state, expected, "{mode:?}");
    }
    // Restarted without a word, the disk has lost what was unflushed.
    let (device, control) = disk();
    write(&device, 0, 1);
    control.power().cut();
    control.restart();
    assert_eq!(sectors(&device, 0), [0; 8]);
}

#[test]
fn rules_choose_their_requests() {
    let (device, control) = disk();
    control.inject(Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Read).within(BLOCK..2 * BLOCK));
    control.inject(Fault::new(Effect::Fail { errno: libc::ENOSPC }).on(Operation::Write).after(1).times(2));
    control.inject(Fault::new(Effect::Fail { errno: libc::ETIMEDOUT }).on(Operation::Flush).once());
    let fate = |outcome: &Outcome| match outcome {
        Outcome::Done(_) => 0,
        Outcome::Failed(error) => error.errno,
        Outcome::TimedOut => -1,
    };
    let fates = |requests| run(&device, requests).iter().map(fate).collect::<Vec<_>>();
    assert_eq!(fates(vec![get(0), get(1), get(2), get(1)]), [0, libc::EIO, 0, libc::EIO]);
    assert_eq!(fates((0..4).map(|b| put(b, 1, false)).collect()), [0, libc::ENOSPC, libc::ENOSPC, 0]);
    assert_eq!(fates(vec![Request::Flush, Request::Flush]), [libc::ETIMEDOUT, 0]);
    control.clear_faults();
    assert_eq!(sectors(&device, 1), [0; 8], "a failed write has no effect");
    let counters = control.counters();
    assert_eq!((counters.reads, counters.writes, counters.flushes), (3, 2, 1));
    assert_eq!((counters.read_bytes, counters.written_bytes), (3 * BLOCK, 2 * BLOCK));
}

#[test]
fn silent_misbehaviour() {
    let (device, control) = disk();
    for block in 0..8 {
        write(&device, block, 10 + block as u8);
    }
    // Lost write.
    control.inject(Fault::new(Effect::Lose).on(Operation::Write).once());
    write(&device, 0, 99);
    assert_eq!(sectors(&device, 0), [10; 8]);
    // Misdirected write and read.
    control.inject(Fault::new(Effect::Misdirect { to: 2 * BLOCK }).on(Operation::Write).once());
    write(&device, 1, 99);
    assert_eq!((sectors(&device, 1)[0], sectors(&device, 2)[0]), (11, 99));
    control.inject(Fault::new(Effect::Misdirect { to: 4 * BLOCK }).on(Operation::Read).once());
    assert_eq!(sectors(&device, 3)[0], 14);
    control.inject(Fault::new(Effect::Misdirect { to: SIZE }).on(Operation::Write).once());
    write(&device, 3, 98);
    assert_eq!(sectors(&device, 3)[0], 98, "beyond the end there is nothing to hit");
    // Flipped on the way in, on the way out, and on the medium.
    let byte = |block, at: usize| match run(&device, vec![get(block)]).pop().unwrap() {
        Outcome::Done(bufs) => bufs[0][at],
        other => panic!("{other:?}"),
    };
    control.inject(Fault::new(Effect::Flip { byte: 7, mask: 1 }).on(Operation::Write).once());
    write(&device, 5, 32);
    assert_eq!((byte(5, 6), byte(5, 7)), (32, 33));
    control.inject(Fault::new(Effect::Flip { byte: 7, mask: 2 }).on(Operation::Read).once());
    assert_eq!((byte(6, 7), byte(6, 7)), (16 ^ 2, 16));
    control.flip(6 * BLOCK + 7, 4);
    assert_eq!(byte(6, 7), 16 ^ 4);
    ok(&device, Request::Flush);
    control.flip(7 * BLOCK, 1);
    control.overwrite(7 * BLOCK + 4090, &[1; 12]);
    assert_eq!((byte(7, 0), byte(7, 1), byte(7, 4089), byte(7, 4090), byte(8, 5), byte(8, 6)), (16, 17, 17, 1, 1, 0));
    // A lying flush.
    write(&device, 9, 1);
    control.inject(Fault::new(Effect::Lose).on(Operation::Flush));
    ok(&device, Request::Flush);
    control.crash(CrashMode::LoseAll);
    control.restart();
    assert_eq!(sectors(&device, 9), [0; 8]);
}

#[test]
fn tampering_reaches_the_medium_and_the_cache() {
    let (device, control) = disk();
    write(&device, 0, 1);
    ok(&device, Request::Flush);
    write(&device, 0, 2);
    control.overwrite(BLOCK - 512, &[9; 1024]);
    assert_eq!(sectors(&device, 0), [2, 2, 2, 2, 2, 2, 2, 9]);
    control.crash(CrashMode::LoseAll);
    control.restart();
    assert_eq!(sectors(&device, 0), [1, 1, 1, 1, 1, 1, 1, 9]);
    assert_eq!(sectors(&device, 1), [9, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn hung_and_slow_requests_take_no_real_time() {
    let clock = Arc::new(SimClock::default());
    let (device, control) = SimDevice::create(SimConfig { clock: clock.clone(), ..SimConfig::new(SIZE) });
    let start = std::time::Instant::now();
    control.inject(Fault::new(Effect::Hang).times(2));
    let outcomes = run(&device, vec![put(0, 1, false), get(0), get(0)]);
    assert!(matches!(outcomes[..], [Outcome::TimedOut, Outcome::TimedOut, Outcome::Done(_)]));
    assert_eq!(sectors(&device, 0), [0; 8]);
    assert_eq!(control.hung(), [(0, BLOCK)]);
    write(&device, 0, 2);
    control.release_hung();
    assert_eq!(sectors(&device, 0), [1; 8], "the late write lands over the newer one");
    control.inject(Fault::new(Effect::Slow { duration: Duration::from_secs(3600) }).on(Operation::Flush));
    ok(&device, Request::Flush);
    assert_eq!(clock.monotonic_ns(), 3_600_000_000_000);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_disk_vanishes_and_returns_with_old_content() {
    let (device, control) = disk();
    write(&device, 0, 1);
    ok(&device, Request::Flush);
    let old = control.medium();
    write(&device, 0, 2);
    ok(&device, Request::Flush);
    control.vanish();
    assert_eq!(errno(&device, get(0)), libc::ENODEV);
    assert_eq!(device.check_presence().unwrap_err().errno, libc::ENODEV);
    control.reappear();
    assert_eq!(sectors(&device, 0), [2; 8]);
    control.vanish();
    control.reappear_with(old.clone());
    assert_eq!(sectors(&device, 0), [1; 8]);
    let (copy, _) = SimDevice::with_image(SimConfig::new(SIZE), old);
    assert_eq!(sectors(&copy, 0), [1; 8]);
}

#[test]
fn discarded_blocks() {
    for (mode, expected) in [(DiscardMode::Zeros, Some(0)), (DiscardMode::Keep, Some(1)), (DiscardMode::Garbage, None)]
    {
        let (device, control) = disk();
        control.set_discard_mode(mode);
        write(&device, 0, 1);
        ok(&device, Request::Flush);
        ok(&device, Request::Discard { offset: 0, len: SIZE });
        match run(&device, vec![get(0)]).pop().unwrap() {
            Outcome::Done(bufs) => match expected {
                Some(fill) => assert!(bufs[0].iter().all(|b| *b == fill)),
                None => assert!(bufs[0].iter().any(|b| *b != 0 && *b != 1)),
            },
            other => panic!("{other:?}"),
        }
        control.crash(CrashMode::LoseAll);
        control.restart();
        assert_eq!(sectors(&device, 0), [1; 8], "an unflushed discard may be lost");
    }
}

/// A run of random requests, its trace and its end state.
fn scenario(seed: u64, shuffle: bool) -> (Vec<TraceEntry>, SimImage, Vec<i32>) {
    let (device, control) = SimDevice::create(SimConfig { seed, shuffle, ..SimConfig::new(SIZE) });
    control.start_trace();
    control.inject(Fault::new(Effect::Lose).on(Operation::Write).after(5).times(3));
    let random = SeededRandom::new(seed);
    let mut errors = Vec::new();
    control.power().cut_after(150);
    for _ in 0..60 {
        let request = |_| match random.below(10) {
            0 => Request::Flush,
            1 => Request::Discard { offset: random.below(200) * BLOCK, len: 8 * BLOCK },
            2..5 => get(random.below(256)),
            _ => put(random.below(256), random.next_u64() as u8, random.chance(1, 5)),
        };
        for outcome in run(&device, (0..5).map(request).collect()) {
            errors.push(if let Outcome::Failed(error) = outcome { error.errno } else { 0 });
        }
    }
    control.crash(CrashMode::Random { seed });
    (control.take_trace(), control.medium(), errors)
}

#[test]
fn the_same_seed_gives_the_same_world() {
    for shuffle in [false, true] {
        let (first, second, other) = (scenario(1, shuffle), scenario(1, shuffle), scenario(2, shuffle));
        assert!(first.0.len() > 100);
        assert!(first.2.contains(&libc::EIO));
        assert_eq!(first.0, second.0);
        assert!(first.1 == second.1);
        assert_eq!(first.2, second.2);
        assert_ne!(first.0, other.0);
    }
    assert_ne!(scenario(1, false).0, scenario(1, true).0);
}

#[test]
fn enormous_disks_are_sparse() {
    let (device, control) = SimDevice::create(SimConfig::new(1 << 50));
    let last = (1 << 50) / BLOCK - 1;
    write(&device, last, 3);
    assert_eq!(sectors(&device, last), [3; 8]);
    ok(&device, Request::Discard { offset: 0, len: 1 << 50 });
    assert_eq!(sectors(&device, last), [0; 8]);
    assert_eq!(control.seen().written_blocks(), 1);
}
