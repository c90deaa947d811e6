//! One behavioural suite for every kind of device, and what only the real ones can show.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::open::open_uring;
use super::sim::{DiscardMode, SimConfig, SimDevice};
use super::uring::{DeviceFile, UringDevice, testing};
use super::{Device, DeviceInfo, IoBatch, IoError, OpenOptions, Outcome, Request, open};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::env::{Random, SeededRandom};
use crate::error::ErrorKind;

const BLOCK: u64 = BLOCK_SIZE as u64;
const SIZE: u64 = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

fn one(device: &Arc<dyn Device>, request: Request) -> Outcome {
    let mut batch = IoBatch::new();
    batch.push(device, request);
    batch.wait(DEADLINE).pop().unwrap()
}

fn done(outcome: Outcome) -> Vec<AlignedBuf> {
    match outcome {
        Outcome::Done(bufs) => bufs,
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: Outcome) -> IoError {
    match outcome {
        Outcome::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

fn read_request(offset: u64, lens: &[usize]) -> Request {
    Request::Read { offset, bufs: lens.iter().map(|len| AlignedBuf::zeroed(*len)).collect() }
}

fn write_request(offset: u64, data: &[u8]) -> Request {
    let buf = Arc::new(AlignedBuf::from_slice(data));
    Request::Write { offset, slices: vec![BufSlice::whole(buf)], durable: false }
}

fn read(device: &Arc<dyn Device>, offset: u64, len: usize) -> Vec<u8> {
    done(one(device, read_request(offset, &[len]))).concat_all()
}

trait ConcatAll {
    fn concat_all(&self) -> Vec<u8>;
}

impl ConcatAll for Vec<AlignedBuf> {
    fn concat_all(&self) -> Vec<u8> {
        self.iter().flat_map(|b| b.iter().copied()).collect()
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let random = SeededRandom::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.next_u64().to_le_bytes()).take(len).collect()
}

/// Everything any device must do. The device is `SIZE` bytes long and empty.
fn suite(device: &Arc<dyn Device>) {
    assert_eq!(device.info().size_bytes, SIZE);
    assert_eq!(device.check_presence(), Ok(()));
    zeros_then_round_trips(device);
    vectors(device);
    refusals(device);
    empty_requests(device);
    large_batches(device);
    staged_batches(device);
    random_operations(device, 1);
    many_threads(device);
}

fn zeros_then_round_trips(device: &Arc<dyn Device>) {
    assert!(read(device, SIZE - BLOCK, BLOCK_SIZE).iter().all(|b| *b == 0));
    for (offset, len, durable) in [(0, 4096, false), (SIZE - 8192, 8192, true), (1 << 20, 1 << 20, false)] {
        let data = pattern(offset, len);
        let slices = vec![BufSlice::whole(Arc::new(AlignedBuf::from_slice(&data)))];
        assert!(done(one(device, Request::Write { offset, slices, durable })).is_empty());
        assert!(done(one(device, Request::Flush)).is_empty());
        assert!(read(device, offset, len) == data);
    }
    let outcome = one(device, Request::Discard { offset: 1 << 20, len: 1 << 20 });
    assert!(done(outcome).is_empty());
    assert!(read(device, 0, 4096) == pattern(0, 4096), "a discard leaves its neighbours alone");
}

fn vectors(device: &Arc<dyn Device>) {
    // Parts of a shared buffer, out of order, of different lengths.
    let data = pattern(7, 16 * BLOCK_SIZE);
    let shared = Arc::new(AlignedBuf::from_slice(&data));
    let part = |from: usize, to: usize| BufSlice::new(shared.clone(), from * BLOCK_SIZE..to * BLOCK_SIZE);
    let slices = vec![part(4, 5), part(0, 3), part(9, 9), part(8, 16)];
    let expected: Vec<u8> = slices.iter().flat_map(|s| s.to_vec()).collect();
    done(one(device, Request::Write { offset: 5 * BLOCK, slices, durable: false }));
    let bufs = done(one(device, read_request(5 * BLOCK, &[8192, 0, 4096, 4096 * 9])));
    assert_eq!(bufs.iter().map(|b| b.len()).collect::<Vec<_>>(), [8192, 0, 4096, 4096 * 9]);
    assert!(bufs.concat_all() == expected);

    // More vectors than one call takes.
    let data = pattern(8, 2500 * BLOCK_SIZE);
    let shared = Arc::new(AlignedBuf::from_slice(&data));
    let slices = (0..2500).map(|i| BufSlice::new(shared.clone(), i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE)).collect();
    done(one(device, Request::Write { offset: BLOCK, slices, durable: true }));
    assert_eq!(Arc::strong_count(&shared), 1, "the sources are free when the write is reported");
    assert!(done(one(device, read_request(BLOCK, &[BLOCK_SIZE; 2500]))).concat_all() == data);
}

fn refusals(device: &Arc<dyn Device>) {
    let wrong = [
        read_request(SIZE, &[4096]),
        read_request(SIZE - BLOCK, &[4096, 4096]),
        read_request(100, &[4096]),
        read_request(0, &[100]),
        write_request(u64::MAX - 4095, &[0; 4096]),
        write_request(2048, &[0; 4096]),
        Request::Discard { offset: 0, len: u64::MAX - 4095 },
    ];
    let mut batch = IoBatch::new();
    let count = wrong.len();
    for request in wrong {
        batch.push(device, request);
    }
    let right = batch.push(device, read_request(0, &[4096]));
    let mut outcomes = batch.wait(DEADLINE);
    done(outcomes.remove(right));
    assert_eq!(outcomes.len(), count);
    for outcome in outcomes {
        assert_eq!(failed(outcome).errno, libc::EINVAL);
    }
}

fn empty_requests(device: &Arc<dyn Device>) {
    assert_eq!(done(one(device, read_request(0, &[0, 0]))).len(), 2);
    done(one(device, write_request(0, &[])));
    done(one(device, Request::Write { offset: 0, slices: Vec::new(), durable: true }));
    done(one(device, Request::Discard { offset: 4096, len: 0 }));
}

fn large_batches(device: &Arc<dyn Device>) {
    // More requests than a ring has entries for, in one go.
    let blocks = SIZE / BLOCK;
    let mut batch = IoBatch::new();
    for block in 0..blocks {
        batch.push(device, write_request(block * BLOCK, &pattern(block, BLOCK_SIZE)));
    }
    assert!(batch.wait(DEADLINE).into_iter().all(|o| done(o).is_empty()));
    let mut batch = IoBatch::new();
    for block in (0..blocks).rev() {
        batch.push(device, read_request(block * BLOCK, &[BLOCK_SIZE]));
    }
    assert_eq!(batch.len() as u64, blocks);
    for (outcome, block) in batch.wait(DEADLINE).into_iter().zip((0..blocks).rev()) {
        assert!(done(outcome).concat_all() == pattern(block, BLOCK_SIZE), "block {block}");
    }
}

fn staged_batches(device: &Arc<dyn Device>) {
    done(one(device, write_request(0, &pattern(1, 4096))));
    let mut batch = IoBatch::new();
    batch.push(device, read_request(0, &[4096]));
    batch.start();
    batch.start();
    batch.push(device, read_request(0, &[8192]));
    batch.push(device, Request::Flush);
    batch.start();
    // Another batch on the same thread comes and goes in between.
    assert!(read(device, 0, 4096) == pattern(1, 4096));
    batch.push(device, read_request(0, &[4096]));
    let lens: Vec<usize> = batch.wait(DEADLINE).into_iter().map(|o| done(o).concat_all().len()).collect();
    assert_eq!(lens, [4096, 8192, 0, 4096]);
    // A batch that is started and forgotten harms nobody.
    let mut forgotten = IoBatch::new();
    forgotten.push(device, read_request(0, &[4096]));
    forgotten.start();
    drop(forgotten);
    assert!(read(device, 0, 4096) == pattern(1, 4096));
}

/// Random batches against a plain array; `None` is undefined content.
fn random_operations(device: &Arc<dyn Device>, seed: u64) {
    let random = SeededRandom::new(seed);
    let blocks = 64usize;
    let mut model: Vec<Option<u64>> = vec![None; blocks];
    for step in 0..300u64 {
        // Requests of a batch are unordered, so they get separate places.
        let mut batch = IoBatch::new();
        let mut expected = Vec::new();
        let mut block = 0;
        while block < blocks {
            let len = (1 + random.below(8) as usize).min(blocks - block);
            let (offset, bytes) = (block as u64 * BLOCK, len * BLOCK_SIZE);
            match random.below(8) {
                0..3 => {
                    batch.push(device, read_request(offset, &vec![BLOCK_SIZE; len]));
                    expected.push(Some(model[block..block + len].to_vec()));
                }
                3..6 => {
                    let tags: Vec<u64> = (0..len as u64).map(|i| step << 32 | (block as u64 + i)).collect();
                    let data: Vec<u8> = tags.iter().flat_map(|t| pattern(*t, BLOCK_SIZE)).collect();
                    let slices = vec![BufSlice::whole(Arc::new(AlignedBuf::from_slice(&data)))];
                    batch.push(device, Request::Write { offset, slices, durable: random.chance(1, 4) });
                    expected.push(None);
                    model[block..block + len].copy_from_slice(&tags.into_iter().map(Some).collect::<Vec<_>>());
                }
                6 if random.chance(1, 3) => {
                    batch.push(device, Request::Discard { offset, len: bytes as u64 });
                    expected.push(None);
                    model[block..block + len].fill(None);
                }
                7 if random.chance(1, 3) => {
                    batch.push(device, Request::Flush);
                    expected.push(None);
                }
                _ => {}
            }
            block += len;
        }
        for (outcome, expected) in batch.wait(DEADLINE).into_iter().zip(expected) {
            let bufs = done(outcome);
            for (buf, tag) in bufs.iter().zip(expected.into_iter().flatten()) {
                if let Some(tag) = tag {
                    assert!(**buf == pattern(tag, BLOCK_SIZE)[..], "step {step}, written in step {}", tag >> 32);
                }
            }
        }
    }
}

fn many_threads(device: &Arc<dyn Device>) {
    let threads = 8u64;
    let share = SIZE / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let base = thread * share;
                for round in 0..10 {
                    let mut batch = IoBatch::new();
                    for i in 0..16 {
                        let seed = thread << 32 | round << 16 | i;
                        batch.push(device, write_request(base + i * 8192, &pattern(seed, 8192)));
                    }
                    batch.wait(DEADLINE).into_iter().for_each(|o| assert!(done(o).is_empty()));
                    done(one(device, Request::Flush));
                    for i in 0..16 {
                        let seed = thread << 32 | round << 16 | i;
                        assert!(read(device, base + i * 8192, 8192) == pattern(seed, 8192));
                    }
                }
            });
        }
    });
}

/// Runs in a thread of its own, whose ring (or lack of one) is fresh.
fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn create(path: &Path) -> Arc<dyn Device> {
    open(path, OpenOptions { create_size: Some(SIZE), exclusive: true, read_only: false }).unwrap()
}

#[test]
fn simulated_disk() {
    for shuffle in [false, true] {
        let (device, control) = SimDevice::create(SimConfig { shuffle, seed: 3, ..SimConfig::new(SIZE) });
        control.set_discard_mode(if shuffle { DiscardMode::Garbage } else { DiscardMode::Zeros });
        suite(&device);
    }
}

#[test]
fn file_through_a_ring() {
    let dir = tempfile::tempdir().unwrap();
    let device = create(&dir.path().join("disk"));
    suite(&device);
}

#[test]
fn file_without_a_ring() {
    let dir = tempfile::tempdir().unwrap();
    let device = create(&dir.path().join("disk"));
    on_a_thread(|| {
        testing::forbid_ring_on_this_thread();
        suite(&device);
        assert_eq!(testing::in_flight(), None);
    });
}

/// A directory on no disk, where there is one.
fn in_memory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[test]
fn file_without_direct_io() {
    // tmpfs; whether it takes O_DIRECT depends on the kernel, the behaviour does not.
    let dir = in_memory();
    let device = create(&dir.path().join("disk"));
    suite(&device);
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None` where loop devices cannot be had (no privilege, no module).
    fn attach(backing: &Path) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(backing).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !name.trim().is_empty()).then(|| Loop(name.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn loop_device() {
    let dir = tempfile::tempdir().unwrap();
    let backing = dir.path().join("backing");
    File::create(&backing).unwrap().set_len(SIZE).unwrap();
    let Some(disk) = Loop::attach(&backing) else {
        eprintln!("skipped: no loop devices here");
        return;
    };
    let exclusive = OpenOptions { exclusive: true, ..OpenOptions::default() };
    let device = open(&disk.0, exclusive).unwrap();
    let info = device.info();
    assert_eq!((info.kind, info.logical_sector_bytes), ("block", 512));
    // whether a loop device discards depends on how it was last configured
    suite(&device);

    // Exclusive means exclusive, for the disk and for the file behind it.
    assert_eq!(open(&disk.0, exclusive).err().unwrap().kind(), ErrorKind::Busy);
    let behind = open(&backing, exclusive).err().unwrap();
    assert_eq!(behind.kind(), ErrorKind::Busy);
    assert!(behind.to_string().contains("backing file of /dev/loop"), "{behind}");
    assert!(open(&disk.0, OpenOptions { read_only: true, ..OpenOptions::default() }).is_ok());
    let sized = OpenOptions { create_size: Some(SIZE / 2), ..OpenOptions::default() };
    assert_eq!(open(&disk.0, sized).err().unwrap().kind(), ErrorKind::Exists);

    // The file behind it goes away.
    fs::remove_file(&backing).unwrap();
    assert!(device.check_presence().unwrap_err().what.contains("behind the loop device"));
    drop(device);
    assert!(open(&disk.0, exclusive).is_ok(), "the claim ends with the device");
}

#[test]
fn mounted_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (backing, point) = (dir.path().join("backing"), dir.path().join("mount point"));
    File::create(&backing).unwrap().set_len(SIZE).unwrap();
    fs::create_dir(&point).unwrap();
    let ran = |command: &mut Command| command.output().is_ok_and(|o| o.status.success());
    if !ran(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&backing)) {
        eprintln!("skipped: no mkfs.ext4 here");
        return;
    }
    let Some(disk) = Loop::attach(&backing) else {
        eprintln!("skipped: no loop devices here");
        return;
    };
    if !ran(Command::new("mount").arg(&disk.0).arg(&point)) {
        eprintln!("skipped: mount is not permitted here");
        return;
    }
    let refused = open(&disk.0, OpenOptions { exclusive: true, ..OpenOptions::default() }).err();
    let unmounted = ran(Command::new("umount").arg(&point));
    let refused = refused.unwrap();
    assert!(unmounted);
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().ends_with("mount point"), "{refused}");
}

#[test]
fn read_only_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    drop(create(&path));
    let device = open(&path, OpenOptions { read_only: true, exclusive: true, create_size: None }).unwrap();
    assert_eq!(failed(one(&device, write_request(0, &[1; 4096]))).errno, libc::EROFS);
    assert_eq!(failed(one(&device, Request::Discard { offset: 0, len: 4096 })).errno, libc::EROFS);
    assert!(read(&device, 0, 4096).iter().all(|b| *b == 0));
}

#[test]
fn a_file_that_shrinks_or_is_unlinked() {
    for ring in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let device = create(&path);
        on_a_thread(|| {
            if !ring {
                testing::forbid_ring_on_this_thread();
            }
            let file = File::options().write(true).open(&path).unwrap();
            // To the middle of a block: the read starts inside the file and ends outside.
            file.set_len(SIZE / 2 + 1000).unwrap();
            for offset in [SIZE / 2 - BLOCK, SIZE / 2, SIZE - BLOCK * 4] {
                let error = failed(one(&device, read_request(offset, &[4 * BLOCK_SIZE])));
                assert_eq!(error.errno, libc::EIO);
                assert!(error.what.contains("shrunk"), "{error}");
            }
            assert_eq!(read(&device, 0, BLOCK_SIZE).len(), BLOCK_SIZE);
            assert!(device.check_presence().unwrap_err().what.contains("shrank from 16777216 to 8389608 bytes"));
            file.set_len(SIZE).unwrap();
            assert_eq!(device.check_presence(), Ok(()));
            fs::remove_file(&path).unwrap();
            assert!(device.check_presence().unwrap_err().what.contains("unlinked"));
        });
    }
}

#[test]
fn one_batch_over_two_devices() {
    let dir = tempfile::tempdir().unwrap();
    let first = create(&dir.path().join("first"));
    let second = create(&dir.path().join("second"));
    let (third, control) = SimDevice::create(SimConfig::new(SIZE));
    control.inject(super::sim::Fault::new(super::sim::Effect::Hang).on(super::sim::Operation::Read).once());
    let devices = [&first, &second, &third];
    let mut batch = IoBatch::new();
    for i in 0..90u64 {
        batch.push(devices[i as usize % 3], write_request(i * BLOCK, &pattern(i, BLOCK_SIZE)));
    }
    batch.wait(DEADLINE).into_iter().for_each(|o| assert!(done(o).is_empty()));
    let mut batch = IoBatch::new();
    for i in 0..90u64 {
        batch.push(devices[i as usize % 3], read_request(i * BLOCK, &[BLOCK_SIZE]));
    }
    let start = Instant::now();
    for (i, outcome) in batch.wait(DEADLINE).into_iter().enumerate() {
        match outcome {
            Outcome::TimedOut if i == 2 => {}
            outcome => assert!(done(outcome).concat_all() == pattern(i as u64, BLOCK_SIZE)),
        }
    }
    assert!(start.elapsed() < DEADLINE / 2, "a simulated hang takes no real time");
}

/// A "disk" that answers a read only when somebody writes into the pipe.
fn pipe_device(dir: &Path) -> (Arc<dyn Device>, File) {
    let path = dir.join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let pipe = File::options().read(true).write(true).open(&path).unwrap();
    let info = DeviceInfo {
        path,
        size_bytes: SIZE,
        logical_sector_bytes: 512,
        physical_sector_bytes: 512,
        rotational: false,
        discard: false,
        kind: "file",
    };
    let fd: OwnedFd = pipe.try_clone().unwrap().into();
    (Arc::new(UringDevice::new(DeviceFile::new(fd, None, info, false, false))), pipe)
}

fn has_ring(device: &Arc<dyn Device>) -> bool {
    read(device, 0, 4096);
    testing::in_flight().is_some()
}

#[test]
fn a_request_outlives_its_deadline() {
    use std::io::Write;
    // the pipe hangs; a disk in memory does not
    let (dir, memory) = (tempfile::tempdir().unwrap(), in_memory());
    let disk = create(&memory.path().join("disk"));
    on_a_thread(|| {
        if !has_ring(&disk) {
            return;
        }
        let (hung, mut pipe) = pipe_device(dir.path());
        let start = Instant::now();
        let mut batch = IoBatch::new();
        batch.push(&hung, read_request(0, &[BLOCK_SIZE]));
        let healthy = batch.push(&disk, read_request(0, &[BLOCK_SIZE]));
        // Time for a busy disk to answer.
        let mut outcomes = batch.wait(Duration::from_secs(3));
        assert!(start.elapsed() < DEADLINE);
        done(outcomes.remove(healthy));
        assert!(matches!(outcomes.pop(), Some(Outcome::TimedOut)));
        assert_eq!(testing::in_flight(), Some(1));

        // The ring goes on working meanwhile, and a batch of another device does not wait for the hung one.
        let start = Instant::now();
        for i in 0..100 {
            done(one(&disk, write_request(i * BLOCK, &pattern(i, BLOCK_SIZE))));
            assert!(read(&disk, i * BLOCK, BLOCK_SIZE) == pattern(i, BLOCK_SIZE));
        }
        assert!(start.elapsed() < DEADLINE / 2);

        // The device is dropped with its request in flight, and answers at last.
        drop(hung);
        assert_eq!(testing::registered(), Some(2));
        pipe.write_all(&[7; BLOCK_SIZE]).unwrap();
        let start = Instant::now();
        while testing::in_flight() != Some(0) {
            assert!(start.elapsed() < DEADLINE);
            read(&disk, 0, BLOCK_SIZE);
        }
        assert_eq!(testing::registered(), Some(1));
    });
}

#[test]
fn a_thread_ends_with_a_request_in_flight() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let disk = create(&dir.path().join("disk"));
    let (hung, mut pipe) = pipe_device(dir.path());
    let ring = on_a_thread(|| {
        let ring = has_ring(&disk);
        if ring {
            let mut batch = IoBatch::new();
            batch.push(&hung, read_request(0, &[BLOCK_SIZE]));
            assert!(matches!(batch.wait(Duration::from_millis(10)).pop(), Some(Outcome::TimedOut)));
        }
        ring
    });
    if ring {
        pipe.write_all(&[7; BLOCK_SIZE]).unwrap();
        // Whoever comes next takes the answer. (A reaper on another thread may hold the ring for a moment.)
        let start = Instant::now();
        while Arc::strong_count(&hung) != 1 || testing::orphans() != 0 {
            assert!(start.elapsed() < DEADLINE);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn dropped_devices_leave_the_rings_of_all_threads() {
    let dir = tempfile::tempdir().unwrap();
    let keep = create(&dir.path().join("keep"));
    on_a_thread(|| {
        if !has_ring(&keep) {
            return;
        }
        for i in 0..600 {
            let device = create(&dir.path().join(format!("{}", i % 4)));
            read(&device, 0, 4096);
            assert_eq!(testing::registered(), Some(2));
            on_a_thread(|| drop(device));
            assert_eq!(testing::registered(), Some(1));
        }
        // More devices at once than the table has places: plain descriptors serve the rest.
        let devices: Vec<_> = (0..300).map(|i| create(&dir.path().join(format!("many-{i}")))).collect();
        for (i, device) in devices.iter().enumerate() {
            done(one(device, write_request(0, &pattern(i as u64, 4096))));
        }
        for (i, device) in devices.iter().enumerate() {
            assert!(read(device, 0, 4096) == pattern(i as u64, 4096));
        }
        drop(devices);
        assert_eq!(testing::registered(), Some(1));
    });
}

#[test]
fn an_idle_thread_does_not_keep_a_dropped_device_claimed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let device = create(&path);
    let (started, wait_started) = std::sync::mpsc::channel();
    let (release, wait_release) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let idle = device.clone();
        scope.spawn(move || {
            let mut forgotten = IoBatch::new();
            forgotten.push(&idle, read_request(0, &[4096]));
            forgotten.start();
            drop((forgotten, idle));
            started.send(()).unwrap();
            let _ = wait_release.recv();
        });
        wait_started.recv().unwrap();
        let mut device = Some(device);
        let start = Instant::now();
        loop {
            // Its answer may take a moment; every device that is dropped looks for it.
            drop(device.take());
            match open(&path, OpenOptions { exclusive: true, ..OpenOptions::default() }) {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
            }
            assert!(start.elapsed() < DEADLINE);
            std::thread::sleep(Duration::from_millis(5));
            drop(create(&dir.path().join("other")));
        }
        drop(release);
    });
}

#[test]
fn direct_io_is_used_where_there_is_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let device = open_uring(&path, OpenOptions { create_size: Some(SIZE), ..OpenOptions::default() }).unwrap();
    // Not every filesystem has it; what is claimed must be what the descriptor says.
    let flags = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter(|e| fs::read_link(e.path()).is_ok_and(|p| p == fs::canonicalize(&path).unwrap()))
        .map(|e| fs::read_to_string(Path::new("/proc/self/fdinfo").join(e.file_name())).unwrap())
        .collect::<String>();
    let octal = flags.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
    let flags = i32::from_str_radix(octal, 8).unwrap();
    assert_eq!(flags & libc::O_DIRECT != 0, device.direct_io());
    assert_eq!(flags & libc::O_NONBLOCK, 0);
}

#[derive(Clone, Debug)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, u8, bool),
    Discard(u64, u64),
    Flush,
}

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let run = || (0..32u64, 1..=16u64);
    let operation = prop_oneof![
        3 => run().prop_map(|(at, len)| Op::Read(at, len)),
        3 => (run(), any::<u8>(), any::<bool>()).prop_map(|((at, len), fill, durable)| Op::Write(at, len, fill, durable)),
        1 => run().prop_map(|(at, len)| Op::Discard(at, len)),
        1 => Just(Op::Flush),
    ];
    prop::collection::vec(operation, 1..40)
}

/// One request at a time against an array of blocks.
fn against_model(device: &Arc<dyn Device>, operations: Vec<Op>) {
    let blocks = device.info().size_bytes / BLOCK;
    let mut model: Vec<Option<u8>> = vec![None; blocks as usize];
    let range = |at: u64, len: u64| at as usize..(at + len) as usize;
    for operation in operations {
        match operation {
            Op::Flush => drop(done(one(device, Request::Flush))),
            Op::Read(at, len) if at + len <= blocks => {
                let data = read(device, at * BLOCK, (len * BLOCK) as usize);
                for (block, expected) in data.chunks(BLOCK_SIZE).zip(&model[range(at, len)]) {
                    assert!(expected.is_none_or(|fill| block.iter().all(|b| *b == fill)));
                }
            }
            Op::Write(at, len, fill, durable) if at + len <= blocks => {
                let slices =
                    vec![BufSlice::whole(Arc::new(AlignedBuf::from_slice(&vec![fill; (len * BLOCK) as usize])))];
                done(one(device, Request::Write { offset: at * BLOCK, slices, durable }));
                model[range(at, len)].fill(Some(fill));
            }
            Op::Discard(at, len) if at + len <= blocks => {
                done(one(device, Request::Discard { offset: at * BLOCK, len: len * BLOCK }));
                model[range(at, len)].fill(None);
            }
            Op::Read(at, len) => {
                assert_eq!(
                    failed(one(device, read_request(at * BLOCK, &[(len * BLOCK) as usize]))).errno,
                    libc::EINVAL
                );
            }
            Op::Write(at, len, fill, _) => {
                let data = vec![fill; (len * BLOCK) as usize];
                assert_eq!(failed(one(device, write_request(at * BLOCK, &data))).errno, libc::EINVAL);
            }
            Op::Discard(at, len) => {
                let request = Request::Discard { offset: at * BLOCK, len: len * BLOCK };
                assert_eq!(failed(one(device, request)).errno, libc::EINVAL);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn devices_behave_like_an_array(operations in operations()) {
        let options = OpenOptions { create_size: Some(40 * BLOCK), exclusive: true, read_only: false };
        let dir = tempfile::tempdir().unwrap();
        against_model(&open(&dir.path().join("disk"), options).unwrap(), operations.clone());
        let (sim, control) = SimDevice::create(SimConfig::new(40 * BLOCK));
        control.set_discard_mode(DiscardMode::Garbage);
        against_model(&sim, operations);
    }
}
