//! The checker finds what is wrong, and operations on damaged items fail instead of panicking.

use super::*;
use crate::fs::check::check;
use crate::fs::dirent::{KIND_DIRENT, KIND_DIRINDEX, dirindex_key};
use crate::fs::inode::{Inode, inline_key, inode_key};
use crate::fs::store::{KIND_ORPHAN, Store};
use crate::tree::Key;

fn problems(fs: &FileSystem<MemStore>) -> String {
    let mut out = Vec::new();
    let counts = check(&**fs.store(), &mut |p| out.push(p)).unwrap();
    assert_eq!(counts.problems, out.len() as u64);
    out.join("\n")
}

fn edit_inode(fs: &FileSystem<MemStore>, ino: Ino, change: impl Fn(&mut Inode)) {
    let mut inode = Inode::decode(&fs.store().get(inode_key(ino)).unwrap().unwrap()).unwrap();
    change(&mut inode);
    fs.store().set_item(inode_key(ino), Some(inode.encode().to_vec()));
}

#[test]
fn each_damage_is_found() {
    type Damage = fn(&FileSystem<MemStore>, Ino, Ino);
    let cases: &[(&str, Damage)] = &[
        ("2 links, 1 expected", |fs, f, _| edit_inode(fs, f, |i| i.nlink = 2)),
        ("not listed as an orphan", |fs, f, _| edit_inode(fs, f, |i| i.nlink = 0)),
        ("does not exist", |fs, f, _| fs.store().set_item(inode_key(f), None)),
        ("inline item", |fs, f, _| fs.store().set_item(inline_key(f), None)),
        ("inline item", |fs, f, _| fs.store().set_item(inline_key(f), Some(vec![0; 7]))),
        ("wrong type", |fs, f, _| edit_inode(fs, f, |i| i.mode = libc::S_IFLNK | 0o777)),
        ("names, 9 noted", |fs, _, d| edit_inode(fs, d, |i| (i.entries, i.next_index) = (9, 50))),
        ("not below the next", |fs, _, d| edit_inode(fs, d, |i| (i.entries, i.next_index) = (0, 3))),
        ("remembers directory", |fs, _, d| edit_inode(fs, d, |i| i.parent = d_parent_wrong())),
        ("is not at its index", |fs, _, d| fs.store().set_item(dirindex_key(d, 3), None)),
        ("has no name", |fs, _, d| {
            let items = fs.store().scan(Key::new(d, KIND_DIRENT, 0), Key::new(d, KIND_DIRENT, u64::MAX), 9).unwrap();
            fs.store().set_item(items[0].0, None);
        }),
        ("wrong hash", |fs, _, d| {
            let items = fs.store().scan(Key::new(d, KIND_DIRENT, 0), Key::new(d, KIND_DIRENT, u64::MAX), 9).unwrap();
            fs.store().set_item(items[0].0, None);
            fs.store().set_item(Key::new(d, KIND_DIRENT, 1), Some(items[0].1.to_vec()));
        }),
        ("listed as an orphan, but has links", |fs, f, _| {
            fs.store().set_item(Key::new(0, KIND_ORPHAN, f), Some(vec![0, 16, 0, 0]));
        }),
        ("unknown item", |fs, f, _| fs.store().set_item(Key::new(f, 77, 0), Some(vec![1]))),
        ("items without an inode", |fs, _, _| fs.store().set_item(Key::new(5000, 6, 0), Some(vec![1]))),
        ("chunks of no", |fs, f, _| fs.store().set_item(Key::new(f, 3, 0), Some(vec![1]))),
        ("inode item of", |fs, f, _| fs.store().set_item(inode_key(f), Some(vec![1; 3]))),
    ];
    for (expected, damage) in cases {
        let fs = new_fs();
        let d = dir(&fs, ROOT_INO, "d");
        let f = file(&fs, d, "f");
        write(&fs, f, 0, b"hello");
        assert_eq!(problems(&fs), "");
        damage(&fs, f, d);
        let found = problems(&fs);
        assert!(found.contains(expected), "{expected:?} in {found:?}");
    }
}

fn d_parent_wrong() -> Ino {
    4321
}

#[test]
fn a_ring_of_directories_is_found_and_survived() {
    let fs = new_fs();
    let a = dir(&fs, ROOT_INO, "a");
    let b = dir(&fs, a, "b");
    let c = dir(&fs, b, "c");
    // Hang `b` under `c`, which is under `b`.
    edit_inode(&fs, b, |i| (i.parent, i.parent_index) = (c, 3));
    fs.store().set_item(dirindex_key(c, 3), fs.store().get(dirindex_key(a, 3)).unwrap().map(|v| v.to_vec()));
    let key = fs.dirent_key(a, b"b");
    let moved = fs.store().get(key).unwrap().map(|v| v.to_vec());
    fs.store().set_item(Key { object: c, ..key }, moved);
    fs.store().set_item(key, None);
    fs.store().set_item(dirindex_key(a, 3), None);
    edit_inode(&fs, a, |i| (i.entries, i.nlink) = (0, 2));
    edit_inode(&fs, c, |i| (i.entries, i.nlink, i.next_index) = (1, 3, 4));
    assert!(problems(&fs).contains("cannot be reached"), "{}", problems(&fs));
    assert_eq!(fs.path_of(c), None);
    let e = dir(&fs, ROOT_INO, "e");
    let f = dir(&fs, e, "f");
    assert_ne!(e, f);
    fails(fs.rename(ROOT, (e, b"f"), (c, b"f"), crate::fs::ops::RenameMode::Replace), Errno::ELOOP);
}

#[test]
fn an_inode_that_cannot_be_read_hides_no_other() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    let made: Vec<_> = (0..5).map(|i| file(&fs, d, &format!("f{i}"))).collect();
    fs.store().set_item(inode_key(made[1]), Some(vec![0; 160]));
    fs.store().set_item(inode_key(made[3]), None);
    let listed = list(&fs, d);
    let names: Vec<_> = listed.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
    assert_eq!(names, [".", "..", "f0", "f1", "f2", "f3", "f4"]);
    for entry in &listed[2..] {
        assert_eq!(entry.file_type, libc::S_IFREG);
        assert_eq!(entry.attr.is_none(), [made[1], made[3]].contains(&entry.ino), "{entry:?}");
    }
    fails(fs.lookup(d, b"f1"), Errno::EIO);
    // one the kernel knows must not be shown as another
    fs.remember(made[1]);
    let mut shown = 0;
    fails(
        fs.readdir(d, 0, true, &mut |_| {
            shown += 1;
            true
        }),
        Errno::EIO,
    );
    assert_eq!(shown, 3, "what comes before it is");
    fs.readdir(d, 0, false, &mut |_| true).unwrap();
    fs.forget(made[1], 1);
    assert_eq!(list(&fs, d).len(), 7);
}

#[test]
fn operations_on_damaged_items_fail() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    let f = file(&fs, d, "f");
    write(&fs, f, 0, b"hello");
    for kind in [KIND_DIRENT, KIND_DIRINDEX] {
        let (key, _) = fs.store().scan(Key::new(d, kind, 0), Key::new(d, kind, u64::MAX), 1).unwrap().remove(0);
        fs.store().set_item(key, Some(vec![9; 30]));
    }
    fs.store().set_item(inline_key(f), Some(vec![0; 3]));
    fails(fs.lookup(d, b"f"), Errno::EIO);
    fails(fs.unlink(d, b"f"), Errno::EIO);
    fails(fs.readdir(d, 0, false, &mut |_| true), Errno::EIO);
    fails(fs.read(f, 0, &mut [0; 9]), Errno::EIO);
    fails(fs.write(f, 1, b"x", false, false), Errno::EIO);
    fs.store().set_item(inode_key(f), Some(vec![0; 160]));
    fails(fs.getattr(f), Errno::EIO);
}
