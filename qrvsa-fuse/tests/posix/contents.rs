//! Reading and writing in all the ways there are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::Ordering;

use crate::support::{Mounted, can_mount, check, errno, fallocate, lseek, set_xattr};

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        })
        .collect()
}

fn read_write(m: &Mounted, name: &str, flags: i32) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags)
        .open(m.path(name))
        .unwrap()
}

#[test]
fn large_and_odd_sized_transfers() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let data = pattern(5_000_001, 1);
    fs::write(m.path("a"), &data).unwrap();
    assert!(m.fs.count("write") <= 6, "requests of 1 MiB: {} for 5 MB", m.fs.count("write"));
    assert_eq!(fs::metadata(m.path("a")).unwrap().len(), data.len() as u64);
    m.forget("a");
    assert!(fs::read(m.path("a")).unwrap() == data);
    let f = read_write(&m, "a", 0);
    let mut buf = [0u8; 100];
    assert_eq!(f.read_at(&mut buf, 4_999_990).unwrap(), 11);
    assert_eq!(f.read_at(&mut buf, 6_000_000).unwrap(), 0);
    f.write_at(&[7; 3], 4095).unwrap();
    f.read_exact_at(&mut buf[..5], 4094).unwrap();
    assert_eq!(buf[..5], [data[4094], 7, 7, 7, data[4098]]);
    let mut f = f;
    f.seek(SeekFrom::End(0)).unwrap();
    let wrote = f.write_vectored(&[IoSlice::new(&[1; 10]), IoSlice::new(&[2; 5000])]).unwrap();
    assert_eq!(wrote, 5010);
    assert_eq!(f.metadata().unwrap().len(), 5_005_011);
}

#[test]
fn pages_stay_cached_over_opens_and_are_right() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), pattern(100_000, 2)).unwrap();
    let first = fs::read(m.path("a")).unwrap();
    let reads = m.fs.count("read");
    for _ in 0..5 {
        assert!(fs::read(m.path("a")).unwrap() == first);
    }
    assert_eq!(m.fs.count("read"), reads, "answered from the page cache");
    for (offset, byte) in [(0u64, 1u8), (50_000, 2), (99_999, 3)] {
        read_write(&m, "a", 0).write_at(&[byte], offset).unwrap();
        assert_eq!(fs::read(m.path("a")).unwrap()[offset as usize], byte);
    }
}

#[test]
fn appends_of_many_writers_all_arrive() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("log"), "").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = m.path("log");
            scope.spawn(move || {
                let flags = if writer % 2 == 0 { 0 } else { libc::O_DIRECT };
                let mut f = OpenOptions::new().append(true).custom_flags(flags).open(path).unwrap();
                for _ in 0..200 {
                    f.write_all(&[b'a' + writer; 512]).unwrap();
                }
            });
        }
    });
    let all = fs::read(m.path("log")).unwrap();
    assert_eq!(all.len(), 4 * 200 * 512);
    for record in all.chunks(512) {
        assert!(record.iter().all(|b| *b == record[0]), "a record is torn");
    }
    for writer in 0..4u8 {
        assert_eq!(all.chunks(512).filter(|c| c[0] == b'a' + writer).count(), 200);
    }
}

#[test]
fn appending_is_decided_at_each_write() {
    if !can_mount() {
        return;
    }
    const RWF_APPEND: i32 = 0x10;
    const RWF_NOAPPEND: i32 = 0x20;
    let pwritev2 = |f: &File, data: &[u8], offset: i64, flags: i32| {
        let iov = libc::iovec { iov_base: data.as_ptr() as *mut _, iov_len: data.len() };
        // SAFETY: one vector over live bytes, which are only read.
        check(unsafe { libc::pwritev2(f.as_raw_fd(), &raw const iov, 1, offset, flags) } as i64)
    };
    let m = Mounted::new();
    fs::write(m.path("a"), "0123456789").unwrap();
    let f = OpenOptions::new().read(true).append(true).open(m.path("a")).unwrap();
    assert_eq!(pwritev2(&f, b"ab", 2, RWF_NOAPPEND).unwrap(), 2);
    m.forget("a");
    assert_eq!(fs::read(m.path("a")).unwrap(), b"01ab456789");
    let g = OpenOptions::new().read(true).write(true).open(m.path("a")).unwrap();
    assert_eq!(pwritev2(&g, b"yz", 0, RWF_APPEND).unwrap(), 2);
    assert_eq!(fs::read(m.path("a")).unwrap(), b"01ab456789yz");
    // F_SETFL turns it on and off on an open file.
    // SAFETY: an open descriptor and integers.
    check(unsafe { libc::fcntl(f.as_raw_fd(), libc::F_SETFL, 0) } as i64).unwrap();
    f.write_at(b"Q", 0).unwrap();
    // SAFETY: as above.
    check(unsafe { libc::fcntl(f.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) } as i64).unwrap();
    (&f).write_all(b"!").unwrap();
    m.forget("a");
    assert_eq!(fs::read(m.path("a")).unwrap(), b"Q1ab456789yz!");
}

#[test]
fn truncation_shows_at_once_and_leaves_zeros() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), pattern(20_000, 3)).unwrap();
    let f = read_write(&m, "a", 0);
    for size in [10_000u64, 4096, 1, 0, 9000] {
        f.set_len(size).unwrap();
        assert_eq!(f.metadata().unwrap().len(), size);
        assert_eq!(fs::metadata(m.path("a")).unwrap().len(), size);
        assert_eq!(fs::read(m.path("a")).unwrap().len(), size as usize);
    }
    assert!(fs::read(m.path("a")).unwrap().iter().all(|b| *b == 0));
    f.write_at(&[1; 100], 20_000).unwrap();
    f.set_len(20_050).unwrap();
    f.set_len(30_000).unwrap();
    let now = fs::read(m.path("a")).unwrap();
    assert!(now[20_000..20_050].iter().all(|b| *b == 1) && now[20_050..].iter().all(|b| *b == 0));
}

#[test]
fn holes_are_found() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = read_write(&m, "a", 0);
    f.write_at(&[1; 4096], 8192).unwrap();
    f.set_len(20_000).unwrap();
    assert_eq!(lseek(&f, 0, libc::SEEK_DATA).unwrap(), 8192);
    assert_eq!(lseek(&f, 0, libc::SEEK_HOLE).unwrap(), 0);
    assert_eq!(lseek(&f, 8192, libc::SEEK_HOLE).unwrap(), 12288);
    assert_eq!(lseek(&f, 9000, libc::SEEK_DATA).unwrap(), 9000);
    assert_eq!(errno(lseek(&f, 12288, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(errno(lseek(&f, 20_000, libc::SEEK_HOLE)), libc::ENXIO);
    assert_eq!(errno(lseek(&f, -1, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(lseek(&f, -5, libc::SEEK_END).unwrap(), 19_995);
    assert_eq!(fs::metadata(m.path("a")).unwrap().blocks(), 8);
}

#[test]
fn allocate_punch_and_zero_agree_with_reads_and_writes() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = read_write(&m, "a", 0);
    let mut model = pattern(100_000, 4);
    f.write_all_at(&model, 0).unwrap();
    let same = |model: &[u8], what: &str| {
        assert_eq!(f.metadata().unwrap().len(), model.len() as u64, "{what}");
        assert!(fs::read(m.path("a")).unwrap() == model, "{what}: cached");
        m.forget("a");
        assert!(fs::read(m.path("a")).unwrap() == model, "{what}: stored");
    };
    let (keep, punch, zero) = (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
    fallocate(&f, punch | keep, 5000, 20_000).unwrap();
    model[5000..25_000].fill(0);
    same(&model, "punch");
    f.write_all_at(&[9; 3000], 6000).unwrap();
    model[6000..9000].fill(9);
    same(&model, "write into the hole");
    fallocate(&f, zero, 90_000, 20_000).unwrap();
    model.resize(110_000, 0);
    model[90_000..].fill(0);
    same(&model, "zero beyond the end");
    fallocate(&f, zero | keep, 8000, 10_000).unwrap();
    model[8000..18_000].fill(0);
    same(&model, "zero");
    fallocate(&f, keep, 200_000, 1000).unwrap();
    same(&model, "allocate and keep the size");
    fallocate(&f, 0, 100_000, 50_000).unwrap();
    model.resize(150_000, 0);
    same(&model, "allocate");
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_UNSHARE_RANGE] {
        assert_eq!(errno(fallocate(&f, mode, 0, 4096)), libc::EOPNOTSUPP, "{mode:#x}");
    }
    same(&model, "after what is not supported");
}

#[test]
fn shared_mappings_and_writes_see_each_other() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    for flags in [0, libc::O_DIRECT] {
        let f = read_write(&m, "a", flags);
        f.set_len(16384).unwrap();
        // SAFETY: a fresh mapping of an open file, unmapped below, used by this thread only.
        let map = unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                16384,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                f.as_raw_fd(),
                0,
            );
            assert_ne!(map, libc::MAP_FAILED, "{}", io::Error::last_os_error());
            std::slice::from_raw_parts_mut(map.cast::<u8>(), 16384)
        };
        map[5000] = 42;
        let mut byte = [0];
        read_write(&m, "a", 0).read_exact_at(&mut byte, 5000).unwrap();
        assert_eq!(byte, [42]);
        read_write(&m, "a", 0).write_at(&[43], 9000).unwrap();
        assert_eq!(map[9000], 43);
        map[0] = 44;
        // SAFETY: the mapping made above.
        unsafe {
            assert_eq!(libc::msync(map.as_mut_ptr().cast(), 16384, libc::MS_SYNC), 0);
            assert_eq!(libc::munmap(map.as_mut_ptr().cast(), 16384), 0);
        }
        drop(f);
        m.forget("a");
        let stored = fs::read(m.path("a")).unwrap();
        assert_eq!((stored[0], stored[5000], stored[9000]), (44, 42, 43));
        fs::remove_file(m.path("a")).unwrap();
    }
}

#[test]
fn a_dirty_mapping_of_an_append_only_descriptor_is_written_in_place() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), [1u8; 8192]).unwrap();
    let f = OpenOptions::new().read(true).append(true).open(m.path("a")).unwrap();
    // SAFETY: a fresh shared mapping of an open file, used by this thread only and unmapped here.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            f.as_raw_fd(),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        map.cast::<u8>().add(10).write(2);
        assert_eq!(libc::msync(map, 8192, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(map, 8192), 0);
    }
    m.forget("a");
    let stored = fs::read(m.path("a")).unwrap();
    assert_eq!((stored.len(), stored[10], stored[11]), (8192, 2, 1));
}

#[test]
fn direct_io_and_the_page_cache_agree() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), [1u8; 65536]).unwrap();
    assert!(fs::read(m.path("a")).unwrap().iter().all(|b| *b == 1));
    let direct = read_write(&m, "a", libc::O_DIRECT);
    let mut buf = qrvsa_core::buf::AlignedBuf::zeroed(8192);
    buf.fill(2);
    direct.write_all_at(&buf, 4096).unwrap();
    let cached = fs::read(m.path("a")).unwrap();
    assert!(cached[4096..12288].iter().all(|b| *b == 2) && cached[12288] == 1);
    read_write(&m, "a", 0).write_all_at(&[3; 100], 5000).unwrap();
    let reads = m.fs.count("read");
    direct.read_exact_at(&mut buf, 4096).unwrap();
    assert!(m.fs.count("read") > reads, "read past the cache");
    assert_eq!((buf[903], buf[904], buf[1003], buf[1004]), (2, 3, 3, 2));
    let end = qrvsa_core::buf::AlignedBuf::from_slice(&[4; 4096]);
    direct.write_all_at(&end, 65536).unwrap();
    assert_eq!(fs::metadata(m.path("a")).unwrap().len(), 69632);
    assert_eq!(direct.read_at(&mut buf, 65536).unwrap(), 4096);
}

#[test]
fn copy_file_range_copies_in_the_server() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let data = pattern(300_000, 5);
    fs::write(m.path("a"), &data).unwrap();
    fs::write(m.path("b"), [9u8; 1000]).unwrap();
    assert_eq!(fs::read(m.path("b")).unwrap().len(), 1000);
    let (a, b) = (read_write(&m, "a", 0), read_write(&m, "b", 0));
    let (mut from, mut to) = (100i64, 500i64);
    // SAFETY: open descriptors and two live integers.
    let n =
        check(unsafe { libc::copy_file_range(a.as_raw_fd(), &raw mut from, b.as_raw_fd(), &raw mut to, 200_000, 0) }
            as i64)
        .unwrap();
    assert_eq!(n, 200_000);
    assert_eq!(m.fs.count("copy_range"), 1);
    let now = fs::read(m.path("b")).unwrap();
    assert!(now[..500] == [9; 500] && now[500..] == data[100..200_100]);
    assert_eq!(fs::copy(m.path("a"), m.path("c")).unwrap(), 300_000);
    assert!(fs::read(m.path("c")).unwrap() == data);
}

#[test]
fn no_space_is_reported_by_the_write_that_lacks_it() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = read_write(&m, "a", 0);
    m.fs.space.store(10_000, Ordering::Relaxed);
    f.write_all_at(&[1; 8192], 0).unwrap();
    assert_eq!(errno(f.write_at(&[2; 8192], 8192)), libc::ENOSPC);
    assert_eq!(f.metadata().unwrap().len(), 8192);
    assert_eq!(fs::read(m.path("a")).unwrap(), [1; 8192]);
    m.fs.space.store(u64::MAX, Ordering::Relaxed);
    f.write_all_at(&[3; 8192], 8192).unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap()[8192..], [3; 8192]);
}

#[test]
fn close_reports_what_flush_does() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "x").unwrap();
    let close = |f: File| {
        use std::os::fd::IntoRawFd;
        // SAFETY: the descriptor is owned and closed once.
        errno(check(unsafe { libc::close(f.into_raw_fd()) } as i64))
    };
    m.fs.flush_errno.store(libc::EDQUOT as u64, Ordering::Relaxed);
    assert_eq!(close(read_write(&m, "a", 0)), libc::EDQUOT);
    let flushes = m.fs.count("flush");
    assert_eq!(close(File::open(m.path("a")).unwrap()), 0, "nothing was written");
    assert_eq!(m.fs.count("flush"), flushes, "closing a read-only descriptor asks nothing");
}

#[test]
fn fsync_and_synchronous_writes_reach_the_server() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = read_write(&m, "a", 0);
    f.write_all_at(b"x", 0).unwrap();
    assert_eq!(m.fs.count("fsync"), 0);
    f.sync_all().unwrap();
    f.sync_data().unwrap();
    assert_eq!(m.fs.count("fsync"), 2);
    File::open(m.root()).unwrap().sync_all().unwrap();
    assert_eq!(m.fs.count("fsync"), 3);
    let block = qrvsa_core::buf::AlignedBuf::zeroed(4096);
    for flags in [libc::O_DSYNC, libc::O_SYNC, libc::O_DIRECT | libc::O_DSYNC, libc::O_DIRECT | libc::O_SYNC] {
        let g = read_write(&m, "a", flags);
        let before = m.fs.count("fsync");
        g.write_all_at(&block, 0).unwrap();
        assert!(m.fs.count("fsync") > before, "flags {flags:#o}");
    }
    // One write of an ordinary descriptor made durable.
    let iov = libc::iovec { iov_base: block.as_ptr() as *mut _, iov_len: 4096 };
    let before = m.fs.count("fsync");
    // SAFETY: one vector over live bytes, which are only read.
    check(unsafe { libc::pwritev2(f.as_raw_fd(), &raw const iov, 1, 0, libc::RWF_DSYNC) } as i64).unwrap();
    assert!(m.fs.count("fsync") > before);
}

#[test]
fn names_are_durable_at_once_with_dirsync() {
    if !can_mount() {
        return;
    }
    for (options, synced) in [("", false), ("dirsync", true), ("sync", true)] {
        let m = Mounted::with(qrvsa_fuse::MountOptions::parse("testpool/sync", options).unwrap());
        type Step<'a> = (&'a str, Box<dyn Fn() -> io::Result<()> + 'a>);
        let steps: Vec<Step> = vec![
            ("create", Box::new(|| File::create(m.path("a")).map(drop))),
            ("mkdir", Box::new(|| fs::create_dir(m.path("d")))),
            ("symlink", Box::new(|| std::os::unix::fs::symlink("x", m.path("s")))),
            ("link", Box::new(|| fs::hard_link(m.path("a"), m.path("b")))),
            ("rename", Box::new(|| fs::rename(m.path("a"), m.path("d/a")))),
            ("unlink", Box::new(|| fs::remove_file(m.path("d/a")))),
            ("rmdir", Box::new(|| fs::remove_dir(m.path("d")))),
        ];
        for (what, step) in &steps {
            let before = m.fs.count("fsync");
            step().unwrap();
            assert_eq!(m.fs.count("fsync") > before, synced, "{what} with \"{options}\"");
        }
    }
}

/// One asynchronous write through the kernel's AIO interface; returns when it is complete.
fn aio_write(f: &File, data: &[u8], offset: i64) -> i64 {
    #[repr(C)]
    #[derive(Default)]
    struct Iocb {
        data: u64,
        key: u32,
        rw_flags: u32,
        opcode: u16,
        priority: i16,
        fd: u32,
        buf: u64,
        bytes: u64,
        offset: i64,
        reserved: u64,
        flags: u32,
        eventfd: u32,
    }
    const IOCB_CMD_PWRITE: u16 = 1;
    let mut context: libc::c_ulong = 0;
    let mut request = Iocb {
        opcode: IOCB_CMD_PWRITE,
        fd: f.as_raw_fd() as u32,
        buf: data.as_ptr() as u64,
        bytes: data.len() as u64,
        offset,
        ..Iocb::default()
    };
    let mut list = [&raw mut request];
    let mut event = [0i64; 4];
    // SAFETY: the context is made and destroyed here, and request, data and event outlive the wait for completion.
    unsafe {
        check(libc::syscall(libc::SYS_io_setup, 1, &raw mut context)).unwrap();
        assert_eq!(check(libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr())).unwrap(), 1);
        let none = std::ptr::null_mut::<libc::timespec>();
        assert_eq!(check(libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), none)).unwrap(), 1);
        check(libc::syscall(libc::SYS_io_destroy, context)).unwrap();
    }
    event[2]
}

#[test]
fn asynchronous_direct_writes_with_dsync_are_durable_when_complete() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = read_write(&m, "a", libc::O_DIRECT | libc::O_DSYNC);
    f.write_all_at(&qrvsa_core::buf::AlignedBuf::zeroed(65536), 0).unwrap();
    let block = qrvsa_core::buf::AlignedBuf::from_slice(&[5; 4096]);
    for offset in [0, 8192, 65536] {
        let before = m.fs.count("fsync");
        assert_eq!(aio_write(&f, &block, offset), 4096);
        assert!(m.fs.count("fsync") > before, "offset {offset}");
    }
    assert_eq!(fs::read(m.path("a")).unwrap()[8192..12288], [5; 4096]);
    // The descriptor's O_DIRECT may go and come after the open.
    // SAFETY: an open descriptor and integers.
    check(unsafe { libc::fcntl(f.as_raw_fd(), libc::F_SETFL, 0) } as i64).unwrap();
    let before = m.fs.count("fsync");
    f.write_all_at(&block, 4096).unwrap();
    assert!(m.fs.count("fsync") > before);
    let h = read_write(&m, "a", libc::O_DSYNC);
    // SAFETY: an open descriptor and integers.
    check(unsafe { libc::fcntl(h.as_raw_fd(), libc::F_SETFL, libc::O_DIRECT) } as i64).unwrap();
    let before = m.fs.count("fsync");
    assert_eq!(aio_write(&h, &block, 0), 4096);
    assert!(m.fs.count("fsync") > before);
    // Without the flag nothing is synced.
    let g = read_write(&m, "a", libc::O_DIRECT);
    let before = m.fs.count("fsync");
    assert_eq!(aio_write(&g, &block, 0), 4096);
    assert_eq!(m.fs.count("fsync"), before);
}

#[test]
fn an_io_error_reaches_the_reader_and_no_one_else() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("bad"), [1u8; 5000]).unwrap();
    fs::write(m.path("good"), [2u8; 5000]).unwrap();
    m.forget("bad");
    m.forget("good");
    set_xattr(&m.path("bad"), "user.eio", b"", 0).unwrap();
    let f = read_write(&m, "bad", libc::O_DIRECT);
    let mut buf = qrvsa_core::buf::AlignedBuf::zeroed(4096);
    assert_eq!(errno(f.read_at(&mut buf, 0)), libc::EIO);
    assert_eq!(fs::read(m.path("good")).unwrap(), [2; 5000]);
}

#[test]
fn a_panic_is_an_io_error_and_the_mount_goes_on() {
    if !can_mount() {
        return;
    }
    let mut options = qrvsa_fuse::MountOptions::new("testpool/panic");
    options.threads = 2;
    let m = Mounted::with(options);
    fs::write(m.path("a"), [1u8; 5000]).unwrap();
    // More often than there are threads.
    for _ in 0..10 {
        assert_eq!(errno(fs::metadata(m.path("panic"))), libc::EIO);
    }
    set_xattr(&m.path("a"), "user.panic", b"", 0).unwrap();
    let f = read_write(&m, "a", libc::O_DIRECT);
    let mut buf = qrvsa_core::buf::AlignedBuf::zeroed(4096);
    for _ in 0..10 {
        assert_eq!(errno(f.read_at(&mut buf, 0)), libc::EIO);
    }
    fs::write(m.path("b"), "fine").unwrap();
    assert_eq!(fs::read(m.path("b")).unwrap(), b"fine");
    assert!(m.mount.is_alive());
}

#[test]
fn slow_operations_run_side_by_side() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    for i in 0..8 {
        fs::write(m.path(&format!("f{i}")), "").unwrap();
    }
    m.fs.meeting.call(8);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let path = m.path(&format!("f{i}"));
            scope.spawn(move || fs::write(path, "x").unwrap());
        }
    });
    assert!(m.fs.meeting.took_place(), "one waited for the other");
}

#[test]
fn direct_writes_of_one_file_run_side_by_side() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), vec![0u8; 1 << 20]).unwrap();
    m.fs.meeting.call(4);
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let path = m.path("a");
            scope.spawn(move || {
                let f = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
                let block = qrvsa_core::buf::AlignedBuf::from_slice(&[writer as u8; 4096]);
                for i in 0..10 {
                    f.write_all_at(&block, (i * 4 + writer) * 4096).unwrap();
                }
            });
        }
    });
    assert!(m.fs.meeting.took_place(), "one waited for the other");
    let all = fs::read(m.path("a")).unwrap();
    for (i, block) in all.chunks(4096).take(40).enumerate() {
        assert!(block.iter().all(|b| *b == (i % 4) as u8), "block {i}");
    }
}

#[test]
fn reading_and_writing_through_a_mapping_of_the_same_mount() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), pattern(1 << 20, 7)).unwrap();
    m.forget("a");
    let a = File::open(m.path("a")).unwrap();
    let mut b = read_write(&m, "b", libc::O_DIRECT);
    // SAFETY: a private read-only mapping of an open file, unmapped below.
    unsafe {
        let map = libc::mmap(std::ptr::null_mut(), 1 << 20, libc::PROT_READ, libc::MAP_PRIVATE, a.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED);
        b.write_all(std::slice::from_raw_parts(map.cast::<u8>(), 1 << 20)).unwrap();
        assert_eq!(libc::munmap(map, 1 << 20), 0);
    }
    let mut copy = Vec::new();
    File::open(m.path("b")).unwrap().read_to_end(&mut copy).unwrap();
    assert!(copy == pattern(1 << 20, 7));
}
