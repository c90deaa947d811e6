//! Rename: the matrix of what replaces what, link counts, parents, cookies.

use super::*;
use crate::fs::ops::RenameMode::{Exchange, NoReplace, Replace};

fn setup() -> (FileSystem<MemStore>, Ino, Ino) {
    let fs = new_fs();
    let (a, b) = (dir(&fs, ROOT_INO, "a"), dir(&fs, ROOT_INO, "b"));
    (fs, a, b)
}

#[test]
fn what_may_replace_what() {
    for (source, target, result) in [
        ("file", "none", None),
        ("file", "file", None),
        ("file", "symlink", None),
        ("file", "empty", Some(Errno::EISDIR)),
        ("symlink", "file", None),
        ("empty", "none", None),
        ("empty", "empty", None),
        ("full", "empty", None),
        ("empty", "full", Some(Errno::ENOTEMPTY)),
        ("empty", "file", Some(Errno::ENOTDIR)),
        ("none", "file", Some(Errno::ENOENT)),
    ] {
        for same_dir in [true, false] {
            let (fs, a, b) = setup();
            let b = if same_dir { a } else { b };
            for (parent, name, kind) in [(a, "s", source), (b, "t", target)] {
                match kind {
                    "file" => drop(file(&fs, parent, name)),
                    "symlink" => drop(fs.symlink(ROOT, parent, name.as_bytes(), b"x").unwrap()),
                    "empty" => drop(dir(&fs, parent, name)),
                    "full" => drop(file(&fs, dir(&fs, parent, name), "inner")),
                    _ => {}
                }
            }
            let moved = fs.lookup(a, b"s").map(|attr| attr.ino);
            let got = fs.rename(ROOT, (a, b"s"), (b, b"t"), Replace).err().map(|e| e.errno());
            assert_eq!(got, result, "{source} over {target}, same: {same_dir}");
            if result.is_none() {
                assert_eq!(fs.lookup(b, b"t").unwrap().ino, moved.unwrap());
                fails(fs.lookup(a, b"s"), Errno::ENOENT);
            }
            clean(fs.store());
        }
    }
}

#[test]
fn names_and_flags() {
    let (fs, a, b) = setup();
    let f = file(&fs, a, "f");
    file(&fs, b, "g");
    fails(fs.rename(ROOT, (a, b"f"), (b, b"g"), NoReplace), Errno::EEXIST);
    fails(fs.rename(ROOT, (a, b"f"), (b, b"none"), Exchange), Errno::ENOENT);
    fails(fs.rename(ROOT, (a, b"."), (b, b"x"), Replace), Errno::EBUSY);
    fails(fs.rename(ROOT, (a, b"f"), (b, b".."), Replace), Errno::EBUSY);
    fails(fs.rename(ROOT, (a, b"f"), (b, b".."), NoReplace), Errno::EEXIST);
    fails(fs.rename(ROOT, (a, b"f"), (b, &[b'x'; 256]), Replace), Errno::ENAMETOOLONG);
    fails(fs.rename(ROOT, (f, b"x"), (b, b"y"), Replace), Errno::ENOTDIR);
    fails(fs.rename(ROOT, (a, b"f"), (f, b"y"), Replace), Errno::ENOTDIR);
    fs.rename(ROOT, (a, b"f"), (b, b"new"), NoReplace).unwrap();
    assert_eq!(names(&fs, b), ["g", "new"]);
    clean(fs.store());
}

#[test]
fn hard_links_of_one_inode_stay() {
    let (fs, a, b) = setup();
    let f = file(&fs, a, "f");
    fs.link(f, b, b"g").unwrap();
    fs.rename(ROOT, (a, b"f"), (b, b"g"), Replace).unwrap();
    fs.rename(ROOT, (a, b"f"), (b, b"g"), Exchange).unwrap();
    fails(fs.rename(ROOT, (a, b"f"), (b, b"g"), NoReplace), Errno::EEXIST);
    assert_eq!(fs.getattr(f).unwrap().nlink, 2);
    assert_eq!((names(&fs, a), names(&fs, b)), (vec!["f".into()], vec!["g".into()]));
    clean(fs.store());
}

#[test]
fn directories_move_with_their_parents() {
    let (fs, a, b) = setup();
    let d = dir(&fs, a, "d");
    let e = dir(&fs, d, "e");
    assert_eq!(stat(&fs, "/a").nlink, 3);
    fails(fs.rename(ROOT, (a, b"d"), (e, b"x"), Replace), Errno::EINVAL);
    fails(fs.rename(ROOT, (a, b"d"), (d, b"x"), Replace), Errno::EINVAL);
    fails(fs.rename(ROOT, (e, b"none"), (a, b"d"), Replace), Errno::ENOENT);
    file(&fs, e, "f");
    fails(fs.rename(ROOT, (e, b"f"), (d, b"e"), Replace), Errno::ENOTEMPTY);
    fails(fs.rename(ROOT, (e, b"f"), (a, b"d"), Exchange), Errno::EINVAL);
    fs.rename(ROOT, (a, b"d"), (b, b"dd"), Replace).unwrap();
    assert_eq!((stat(&fs, "/a").nlink, stat(&fs, "/b").nlink), (2, 3));
    assert_eq!(fs.lookup(d, b"..").unwrap().ino, b);
    assert_eq!(fs.path_of(e).unwrap(), b"/b/dd/e");
    clean(fs.store());
}

#[test]
fn exchange_of_file_and_directory() {
    let (fs, a, b) = setup();
    let (d, f) = (dir(&fs, a, "x"), file(&fs, b, "y"));
    fs.rename(ROOT, (a, b"x"), (b, b"y"), Exchange).unwrap();
    assert_eq!((fs.lookup(a, b"x").unwrap().ino, fs.lookup(b, b"y").unwrap().ino), (f, d));
    assert_eq!((stat(&fs, "/a").nlink, stat(&fs, "/b").nlink), (2, 3));
    assert_eq!(fs.lookup(d, b"..").unwrap().ino, b);
    assert_eq!(fs.path_of(f).unwrap(), b"/a/x");
    fs.rename(ROOT, (b, b"y"), (a, b"x"), Exchange).unwrap();
    assert_eq!((stat(&fs, "/a").nlink, stat(&fs, "/b").nlink), (3, 2));
    clean(fs.store());
}

#[test]
fn replaced_inode_lives_while_open() {
    let (fs, a, _) = setup();
    file(&fs, a, "new");
    let old = file(&fs, a, "old");
    write(&fs, old, 0, b"still here");
    fs.open(ROOT, old, false).unwrap();
    fs.rename(ROOT, (a, b"new"), (a, b"old"), Replace).unwrap();
    assert_eq!(contents(&fs, old), b"still here");
    assert_eq!(fs.getattr(old).unwrap().nlink, 0);
    fs.release(old);
    fails(fs.getattr(old), Errno::ENOENT);
    assert_eq!(clean(fs.store()).orphans, 0);
}

#[test]
fn a_replaced_name_keeps_its_cookie() {
    let (fs, a, b) = setup();
    for n in ["1", "2", "3"] {
        file(&fs, a, n);
    }
    file(&fs, b, "x");
    let cookie = list(&fs, a)[3].cookie;
    fs.rename(ROOT, (b, b"x"), (a, b"2"), Replace).unwrap();
    let after = list(&fs, a);
    assert_eq!((after[3].name.as_slice(), after[3].cookie), (&b"2"[..], cookie));
    fs.rename(ROOT, (a, b"1"), (a, b"9"), Replace).unwrap();
    assert_eq!(names(&fs, a), ["9", "2", "3"]);
    clean(fs.store());
}

#[test]
fn times() {
    let (fs, a, b) = setup();
    let f = file(&fs, a, "f");
    let before = (fs.getattr(a).unwrap(), fs.getattr(b).unwrap(), fs.getattr(f).unwrap());
    fs.rename(ROOT, (a, b"f"), (b, b"f"), Replace).unwrap();
    let after = (fs.getattr(a).unwrap(), fs.getattr(b).unwrap(), fs.getattr(f).unwrap());
    assert!(after.0.mtime_ns > before.0.mtime_ns && after.0.ctime_ns > before.0.ctime_ns);
    assert!(after.1.mtime_ns > before.1.mtime_ns && after.1.ctime_ns > before.1.ctime_ns);
    assert!(after.2.mtime_ns == before.2.mtime_ns && after.2.ctime_ns > before.2.ctime_ns);
}

#[test]
fn a_listing_ends_whoever_renames_or_adds() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    for i in 0..1000 {
        file(&fs, d, &format!("{i:04}"));
    }
    // each entry is renamed twice, so that it has its old name again
    let mut seen = Vec::new();
    fs.readdir(d, 2, false, &mut |e| {
        seen.push(e.name.clone());
        fs.rename(ROOT, (d, &e.name), (d, b"temporary"), Replace).unwrap();
        fs.rename(ROOT, (d, b"temporary"), (d, &e.name), NoReplace).unwrap();
        seen.len() < 5000
    })
    .unwrap();
    assert_eq!(seen.len(), 1000, "a renamed entry keeps its place");
    // a new one for each that is shown
    let (mut seen, end) = (0, fs.listing_end(d).unwrap());
    fs.readdir_until(d, 2, end, true, &mut |e| {
        seen += 1;
        file(&fs, d, &format!("new{seen}"));
        fs.rename(ROOT, (d, &e.name), (d, &[&e.name[..], b".old"].concat()), Replace).unwrap();
        seen < 5000
    })
    .unwrap();
    assert_eq!((seen, list(&fs, d).len()), (1000, 2002));
    fs.readdir_until(d, end, end, false, &mut |_| panic!("beyond the end")).unwrap();
    fails(fs.listing_end(file(&fs, d, "f")), Errno::ENOTDIR);
    clean(fs.store());
}
