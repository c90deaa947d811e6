//! Large directories.

use super::*;

#[test]
fn a_hundred_thousand_entries() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    let count = 100_000u64;
    for i in 0..count {
        fs.mknod(ROOT, d, format!("file-{i}").as_bytes(), node(libc::S_IFREG | 0o644)).unwrap();
    }
    assert_eq!(fs.getattr(d).unwrap().size, count + 2);
    assert_eq!(fs.lookup(d, b"file-77777").unwrap().ino, fs.resolve(b"/d/file-77777").unwrap());
    let mut seen = 0u64;
    fs.readdir(d, 0, false, &mut |e| {
        if e.name.starts_with(b"file-") {
            assert_eq!(e.name, format!("file-{seen}").into_bytes());
            seen += 1;
        }
        true
    })
    .unwrap();
    assert_eq!(seen, count);
    for i in (0..count).step_by(2) {
        fs.unlink(d, format!("file-{i}").as_bytes()).unwrap();
    }
    assert_eq!(names(&fs, d).len() as u64, count / 2);
    assert_eq!(clean(fs.store()).entries, count / 2 + 1);
}
