//! Volumes as VHDX files: read and written by the engine for such files, after crashes too, and beside a filesystem.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::*;
use crate::error::ErrorKind;
use crate::fs::ops::{AllocateMode, Caller, NewNode, Operations, ROOT_INO, SetAttr, SetTime};
use crate::fs::{FileSystem, Options as FsOptions};
use crate::share::{Face, WithVolumes};
use crate::vhdx::{Image, ImageFile};
use crate::volume::Spec;

const MIB: u64 = 1 << 20;

/// A face as the file under an image.
struct FaceFile(Face, PathBuf);

fn os(e: crate::Error) -> io::Error {
    io::Error::from(e.errno())
}

impl ImageFile for FaceFile {
    fn path(&self) -> &Path {
        &self.1
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length().map_err(os)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.0.read(offset, buf).map_err(os)?;
        buf[read..].fill(0);
        Ok(())
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write(offset, bytes).map_err(os)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush().map_err(os)
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        if length == self.length()? { Ok(()) } else { Err(io::Error::from(Errno::EPERM)) }
    }
    fn zero(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        self.0.discard(offset..offset + length).map_err(os)
    }
    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.0.next_data(offset).map_err(os)
    }
    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.0.next_hole(offset).map_err(os)
    }
    fn identity(&self) -> (u64, u64) {
        (0, 1)
    }
}

fn image(world: &World, write: bool) -> Arc<Image> {
    let file = Arc::new(FaceFile(face(world), PathBuf::from("/v.vhdx")));
    Image::load(file, write, &world.env, |_| panic!("it has no parent")).unwrap()
}

fn face(world: &World) -> Face {
    Face::new(world.pool().open_volume("v").unwrap())
}

fn errno<T: std::fmt::Debug>(result: crate::Result<T>) -> Errno {
    result.unwrap_err().errno()
}

fn with_volume(size_bytes: u64, block_bytes: u32, seed: u64) -> World {
    let world = World::new(geometry(2, 1), 3, 160, seed);
    let spec = Spec { size_bytes, block_bytes, record_bytes: 16 << 10, reserve: false };
    world.pool().create_volume("v", &spec).unwrap();
    world
}

#[test]
fn an_image_over_a_volume_reads_and_writes_it_and_survives_a_crash() {
    for (size, block) in [(100 * MIB + 512, 512), (64 * MIB, 4096)] {
        let mut world = with_volume(size, block, 1);
        let volume = world.pool().open_volume("v").unwrap();
        volume.write(5 * MIB, &pattern(1, 98_304), false).unwrap();
        {
            let image = image(&world, false);
            let disk = image.disk();
            assert_eq!((disk.disk_size, disk.logical_sector, disk.leave_allocated), (size, block, true));
            let mut got = vec![0; 98_304];
            image.read(5 * MIB, &mut got).unwrap();
            assert!(got == pattern(1, 98_304));
        }
        let before = {
            let image = image(&world, true);
            image.write(size - 8192, &pattern(2, 8192)).unwrap();
            image.write(40 * MIB, &pattern(3, 303_104)).unwrap();
            image.flush().unwrap();
            image.data_write_guid()
        };
        drop(volume);
        // no close: the headers say that the file is in use, and its log is what the crash left of it
        world.crash(CrashMode::LoseAll);
        world.import(|_| true).unwrap();
        let image = image(&world, true);
        assert_eq!(image.data_write_guid(), before, "new identities are kept");
        let volume = world.pool().open_volume("v").unwrap();
        let mut got = vec![0; 303_104];
        volume.read(40 * MIB, &mut got).unwrap();
        assert!(got == pattern(3, 303_104));
        volume.read(size - 8192, &mut got[..8192]).unwrap();
        assert!(got[..8192] == pattern(2, 8192));
        image.close().unwrap();
        let report = world.pool().check(true, &mut |_| true).unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
    }
}

#[test]
fn what_is_made_up_cannot_be_changed_and_what_is_kept_is_kept_exactly() {
    let mut world = with_volume(MIB, 512, 2);
    {
        let face = face(&world);
        let length = face.length().unwrap();
        assert_eq!(length, 36 * MIB, "4 MiB before one block of 32 MiB");
        let mut file = vec![0; length as usize + 5];
        assert_eq!(face.read(0, &mut file).unwrap(), length as usize);
        // writing it back changes nothing and is fine; a bit of identifier, region table, metadata, table or padding is not
        face.write(0, &file[..length as usize]).unwrap();
        for at in [3, 512, 192 << 10, 256 << 10, 2 * MIB + 3, 3 * MIB, 3 * MIB + 100, 5 * MIB] {
            let bent = [file[at as usize] ^ 1];
            assert_eq!(errno(face.write(at, &bent)), Errno::EPERM, "at {at}");
        }
        assert_eq!(errno(face.write(length - 1, &[0, 0])), Errno::EFBIG);
        // headers and log, to the byte, over borders of blocks
        for (i, at) in [(64 << 10) + 5, (128 << 10) + 4000, MIB, 2 * MIB - 300].into_iter().enumerate() {
            let data = pattern(i as u64, 300);
            face.write(at, &data).unwrap();
            file[at as usize..at as usize + 300].copy_from_slice(&data);
        }
        let data = pattern(9, 700);
        face.write(4 * MIB + 100, &data).unwrap();
        file[4 * MIB as usize + 100..][..700].copy_from_slice(&data);
        face.flush().unwrap();
        drop(face);
        world.crash(CrashMode::LoseAll);
        world.import(|_| true).unwrap();
        let mut again = vec![0; length as usize];
        // in odd pieces
        let face = self::face(&world);
        for start in (0..length as usize).step_by(99_991) {
            let end = (start + 99_991).min(length as usize);
            assert_eq!(face.read(start as u64, &mut again[start..end]).unwrap(), end - start);
        }
        assert!(again == file[..length as usize]);
        assert_eq!(face.next_data(0).unwrap(), Some(0));
        assert_eq!(face.next_data(4 * MIB).unwrap(), Some(4 * MIB));
        // the volume was written all over above
        assert_eq!(face.next_hole(0).unwrap(), 5 * MIB);
        assert_eq!(face.next_data(5 * MIB).unwrap(), None);
        assert_eq!(face.next_hole(6 * MIB).unwrap(), 6 * MIB);
    }
    let report = world.pool().check(true, &mut |_| true).unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
    // the headers are spoilt by now: a hole over them makes them new, and touches nothing else
    face(&world).discard(0..2 * MIB).unwrap();
    let mut got = [0; 700];
    face(&world).read(4 * MIB + 100, &mut got).unwrap();
    assert!(got[..] == pattern(9, 700));
    // the largest disk of the format has a face, a larger one has none
    world.pool().resize_volume("v", 64 << 40, false).unwrap();
    assert_eq!(face(&world).length().unwrap(), (64 << 40) + 20 * MIB);
    let image = image(&world, false);
    let mut end = [1; 512];
    image.read((64 << 40) - 512, &mut end).unwrap();
    assert_eq!(end, [0; 512]);
    drop(image);
    world.pool().resize_volume("v", (64 << 40) + 512, false).unwrap();
    assert_eq!(face(&world).length().unwrap_err().kind(), ErrorKind::Invalid);
}

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

fn names(ops: &dyn Operations, dir: u64) -> Vec<String> {
    let (mut all, mut cookie) = (Vec::new(), 0);
    loop {
        // two at a time, as with a small buffer
        let mut page = Vec::new();
        ops.readdir(dir, cookie, true, &mut |entry| {
            if page.len() == 2 {
                return false;
            }
            page.push(entry.clone());
            true
        })
        .unwrap();
        let Some(last) = page.last() else { return all };
        cookie = last.cookie;
        all.extend(page.iter().map(|entry| String::from_utf8(entry.name.clone()).unwrap()));
    }
}

#[test]
fn volumes_stand_beside_the_files_as_the_property_says() {
    let world = with_volume(MIB, 512, 3);
    let pool = world.pool().clone();
    let big = Spec { size_bytes: 1 << 50, block_bytes: 512, record_bytes: 16 << 10, reserve: false };
    pool.create_volume("big", &big).unwrap();
    let dataset = world.dataset();
    let inner = Arc::new(FileSystem::open(dataset.clone(), FsOptions::default()).unwrap());
    let ops = WithVolumes::new(inner.clone(), dataset.clone(), pool.clone());
    let file = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, rdev: 0 };
    ops.mknod(ROOT, ROOT_INO, b"file", file).unwrap();
    // nobody has set the property: there with the first volume, unless a file of the user's has the name
    assert_eq!(names(&ops, ROOT_INO), [".", "..", "file", ".volumes"]);
    assert_eq!(ops.lookup(ROOT_INO, b".volumes").unwrap().mode, libc::S_IFDIR | 0o500);
    inner.mknod(ROOT, ROOT_INO, b".volumes", file).unwrap();
    assert_eq!(ops.lookup(ROOT_INO, b".volumes").unwrap().mode, libc::S_IFREG | 0o644);
    ops.unlink(ROOT_INO, b".volumes").unwrap();
    dataset.set_property("volumes", "off");
    assert_eq!(names(&ops, ROOT_INO), [".", "..", "file"]);
    assert_eq!(errno(ops.lookup(ROOT_INO, b".volumes")), Errno::ENOENT);
    assert!(!ops.may_cache_name(ROOT_INO, b".volumes") && ops.may_cache_name(ROOT_INO, b"file"));

    dataset.set_property("volumes", "ro");
    assert_eq!(names(&ops, ROOT_INO), [".", "..", "file", ".volumes"]);
    let dir = ops.lookup(ROOT_INO, b".volumes").unwrap().ino;
    assert_eq!(names(&ops, dir), [".", "..", "v.vhdx"], "the larger one has no file");
    let attr = ops.lookup(dir, b"v.vhdx").unwrap();
    assert_eq!((attr.mode, attr.size), (libc::S_IFREG | 0o400, 36 * MIB));
    assert_eq!(ops.getattr(attr.ino).unwrap().size, 36 * MIB);
    assert_eq!(ops.lookup(dir, b"..").unwrap().ino, ROOT_INO);
    assert!(!ops.may_cache(attr.ino) && !ops.may_cache(dir));
    assert!(!ops.may_cache(ROOT_INO) && ops.may_cache(ROOT_INO), "read anew once after the change");
    ops.open(ROOT, attr.ino, false).unwrap();
    let mut head = [0; 8];
    assert_eq!(ops.read(attr.ino, 0, &mut head).unwrap(), 8);
    assert_eq!(&head, b"vhdxfile");
    assert_eq!(errno(ops.write(attr.ino, 4 * MIB, &[1; 512], false, false)), Errno::EROFS);
    assert_eq!(pool.destroy_dataset("v").unwrap_err().kind(), ErrorKind::Busy, "it is open");

    dataset.set_property("volumes", "rw");
    assert_eq!(ops.write(attr.ino, 4 * MIB, &[1; 512], false, false).unwrap(), 512);
    ops.fsync(attr.ino, false).unwrap();
    let mut got = [0; 512];
    pool.open_volume("v").unwrap().read(0, &mut got).unwrap();
    assert_eq!(got, [1; 512]);
    assert_eq!(ops.seek_data(attr.ino, 4 * MIB).unwrap(), 4 * MIB);
    assert_eq!(ops.seek_hole(attr.ino, 0).unwrap(), 4 * MIB + 4096);
    assert_eq!(errno(ops.seek_data(attr.ino, 5 * MIB)), Errno::ENXIO);
    let hole = |mode, range| ops.fallocate(ROOT, attr.ino, mode, range);
    hole(AllocateMode::PunchHole, 4 * MIB..5 * MIB).unwrap();
    assert_eq!(errno(ops.seek_data(attr.ino, 4 * MIB)), Errno::ENXIO);
    assert_eq!(errno(hole(AllocateMode::PunchHole, 35 * MIB..37 * MIB)), Errno::EPERM);
    assert_eq!(errno(hole(AllocateMode::CollapseRange, 0..MIB)), Errno::EOPNOTSUPP);

    // nothing is made, removed or moved there
    assert_eq!(errno(ops.mknod(ROOT, dir, b"x", file)), Errno::EPERM);
    assert_eq!(errno(ops.unlink(dir, b"v.vhdx")), Errno::EPERM);
    assert_eq!(errno(ops.rmdir(ROOT_INO, b".volumes")), Errno::EPERM);
    let mode = crate::fs::ops::RenameMode::Replace;
    assert_eq!(errno(ops.rename(ROOT, (dir, b"v.vhdx"), (ROOT_INO, b"x"), mode)), Errno::EPERM);
    assert_eq!(errno(ops.mknod(ROOT, ROOT_INO, b".volumes", file)), Errno::EEXIST);
    assert_eq!(errno(ops.link(attr.ino, ROOT_INO, b"x")), Errno::EPERM);
    assert_eq!(errno(ops.open(ROOT, attr.ino, true)), Errno::EPERM);
    assert_eq!(errno(ops.create(ROOT, dir, b"new", file, false, false)), Errno::EPERM);
    let opened = ops.create(ROOT, dir, b"v.vhdx", file, false, false).unwrap();
    assert_eq!((opened.0.ino, opened.1), (attr.ino, false));
    ops.release(attr.ino);
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    assert_eq!(errno(ops.setattr(ROOT, attr.ino, size(5))), Errno::EPERM);
    ops.setattr(ROOT, attr.ino, size(36 * MIB)).unwrap();
    ops.setattr(ROOT, attr.ino, SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();

    // it grows with the volume, and goes with it
    pool.resize_volume("v", 40 * MIB, false).unwrap();
    assert_eq!(ops.getattr(attr.ino).unwrap().size, 68 * MIB);
    ops.release(attr.ino);
    pool.destroy_dataset("v").unwrap();
    assert_eq!(errno(ops.getattr(attr.ino)), Errno::ENOENT);
    assert_eq!(names(&ops, dir), [".", ".."]);
    dataset.set_property("volumes", "off");
    assert_eq!(errno(ops.getattr(dir)), Errno::ENOENT);
    assert_eq!(names(&ops, ROOT_INO), [".", "..", "file"]);
}

#[test]
fn who_fills_a_volume_and_who_writes_to_its_file_exclude_each_other() {
    let world = with_volume(MIB, 512, 5);
    let pool = world.pool().clone();
    let volume = pool.open_volume("v").unwrap();
    let dataset = world.dataset();
    let inner = Arc::new(FileSystem::open(dataset.clone(), FsOptions::default()).unwrap());
    let ops = WithVolumes::new(inner, dataset.clone(), pool.clone());
    let dir = ops.lookup(ROOT_INO, b".volumes").unwrap().ino;
    let ino = ops.lookup(dir, b"v.vhdx").unwrap().ino;
    let write = || ops.write(ino, 4 * MIB, &[1; 512], false, false);
    let busy = |result: crate::Result<crate::volume::Alone>| result.err().map(|e| e.kind()) == Some(ErrorKind::Busy);

    // Open for reading only, as the property says: no matter.
    ops.open(ROOT, ino, false).unwrap();
    assert!(!pool.volume_in_use("v"));
    let alone = volume.alone().unwrap();
    assert!(pool.volume_in_use("v") && busy(volume.alone()));
    assert_eq!(volume.share().err().map(|e| e.kind()), Some(ErrorKind::Busy));
    dataset.set_property("volumes", "rw");
    assert_eq!(errno(write()), Errno::EBUSY);
    assert_eq!(errno(ops.fallocate(ROOT, ino, AllocateMode::PunchHole, 4 * MIB..5 * MIB)), Errno::EBUSY);
    ops.open(ROOT, ino, false).unwrap();
    assert_eq!(errno(write()), Errno::EBUSY);
    drop(alone);
    assert!(!pool.volume_in_use("v"));
    // The first write through it, not the open, was what made it a writer; it stays one until the last is closed.
    write().unwrap();
    ops.release(ino);
    assert!(pool.volume_in_use("v") && busy(volume.alone()));
    ops.release(ino);
    drop(volume.alone().unwrap());

    // Opened while it can be written.
    ops.open(ROOT, ino, false).unwrap();
    assert!(busy(volume.alone()));
    let shared = volume.share().unwrap();
    ops.release(ino);
    assert!(busy(volume.alone()));
    drop(shared);
    let alone = volume.alone().unwrap();
    alone.write(0, &[2; 512], true).unwrap();
    // By number alone, as a file server does.
    assert_eq!(errno(write()), Errno::EBUSY);
    drop(alone);
    write().unwrap();
    assert!(!pool.volume_in_use("v"));
}
