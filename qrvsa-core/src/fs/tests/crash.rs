//! What fsync promises, and what namespace operations leave after a crash.

use super::*;
use crate::fs::mem_store::PutCounts;
use crate::fs::ops::{RenameMode, SetAttr, XattrMode};

fn recovered(fs: &FileSystem<MemStore>) -> FileSystem<MemStore> {
    let store = fs.store().crash(usize::MAX);
    clean(&store);
    FileSystem::open(Arc::new(store), Options::default()).unwrap()
}

#[test]
fn fsync_keeps_contents_and_name() {
    for size in [0usize, 10, 2048, 2049, 300_000] {
        let fs = new_fs();
        fs.store().commit();
        let f = file(&fs, ROOT_INO, "f");
        write(&fs, f, 0, &vec![3; size]);
        fs.fsync(f, false).unwrap();
        write(&fs, f, 0, b"not synced");
        let after = recovered(&fs);
        let ino = after.resolve(b"/f").unwrap();
        assert_eq!(contents(&after, ino), vec![3; size]);
    }
}

#[test]
fn growing_out_of_the_inode_survives_only_whole() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[1; 1000]);
    fs.store().commit();
    write(&fs, f, 1000, &[2; 9000]);
    fs.setattr(ROOT, f, SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    let after = recovered(&fs);
    assert_eq!((contents(&after, f), stat(&after, "/f").mode & 0o777), (vec![1; 1000], 0o600));
    fs.fsync(f, true).unwrap();
    let after = recovered(&fs);
    assert_eq!(contents(&after, f)[1000..], [2; 9000]);
    fs.open(ROOT, f, true).unwrap();
    write(&fs, f, 0, b"short");
    fs.fsync(f, true).unwrap();
    assert_eq!(contents(&recovered(&fs), f), b"short");
}

#[test]
fn attributes_do_not_bring_unsynced_contents() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[1; 9000]);
    fs.store().commit();
    write(&fs, f, 9000, &[2; 50_000]);
    fs.setxattr(ROOT, f, b"user.a", b"v", XattrMode::Set).unwrap();
    fs.link(f, ROOT_INO, b"g").unwrap();
    fs.rename(ROOT, (ROOT_INO, b"f"), (ROOT_INO, b"h"), RenameMode::Replace).unwrap();
    let after = recovered(&fs);
    assert_eq!(contents(&after, f), [1; 9000]);
    assert_eq!(names(&after, ROOT_INO), ["h", "g"]);
    assert_eq!(after.getxattr(f, b"user.a").unwrap(), b"v");
}

#[test]
fn open_deleted_files_are_gone_after_a_crash() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[1; 9000]);
    fs.open(ROOT, f, false).unwrap();
    fs.store().commit();
    fs.unlink(ROOT_INO, b"f").unwrap();
    fs.fsync(f, false).unwrap();
    let after = recovered(&fs);
    fails(after.getattr(f), Errno::ENOENT);
    assert_eq!(after.store().block_count(), 0);
}

#[test]
fn writes_are_not_logged_and_names_are() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let count = |change: &dyn Fn()| {
        let before = fs.store().put_counts();
        change();
        let after = fs.store().put_counts();
        PutCounts {
            always: after.always - before.always,
            keep_content_fields: after.keep_content_fields - before.keep_content_fields,
            with_object: after.with_object - before.with_object,
            logged_objects: after.logged_objects - before.logged_objects,
        }
    };
    let none = PutCounts::default();
    assert_eq!(count(&|| write(&fs, f, 0, b"x")), PutCounts { with_object: 2, ..none });
    assert_eq!(count(&|| write(&fs, f, 0, &[1; 5000])), PutCounts { with_object: 2, ..none });
    assert_eq!(count(&|| write(&fs, f, 0, b"x")), PutCounts { with_object: 1, ..none });
    assert_eq!(count(&|| drop(fs.link(f, ROOT_INO, b"g"))), PutCounts { always: 3, keep_content_fields: 1, ..none });
    assert_eq!(count(&|| assert_ne!(file(&fs, ROOT_INO, "h"), f)), PutCounts { always: 4, ..none });
    assert_eq!(count(&|| fs.fsync(f, false).unwrap()), PutCounts { logged_objects: 1, ..none });
    fs.read(f, 0, &mut [0; 1]).unwrap();
    assert_eq!(count(&|| drop(fs.read(f, 0, &mut [0; 1]))), none);
    assert_eq!(count(&|| drop(fs.lookup(ROOT_INO, b"f"))), none);
}
