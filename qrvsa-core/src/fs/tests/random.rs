//! Random operations on the filesystem and on the model, compared at every step and as a whole at the end.

use std::collections::BTreeMap;

use nix::errno::Errno;
use proptest::prelude::*;

use super::model::{Id, Kind, Model};
use super::*;
use crate::fs::check::check_with_mask;
use crate::fs::ops::{AllocateMode, RenameMode, SetAttr, XattrMode};

#[derive(Clone, Debug)]
enum Op {
    Make { dir: usize, name: usize, kind: u8 },
    Create { dir: usize, name: usize, exclusive: bool, truncate: bool },
    Link { node: usize, dir: usize, name: usize },
    Unlink { dir: usize, name: usize },
    Rmdir { dir: usize, name: usize },
    Rename { from: (usize, usize), to: (usize, usize), mode: u8 },
    Lookup { dir: usize, name: usize },
    Open { node: usize, truncate: bool },
    Release { node: usize },
    Write { node: usize, offset: Option<usize>, len: usize, byte: u8 },
    Truncate { node: usize, size: usize },
    Allocate { node: usize, mode: u8, offset: usize, len: usize },
    Copy { from: (usize, usize), to: (usize, usize), len: usize },
    Read { node: usize, offset: usize, len: usize },
    Chmod { node: usize, mode: u32 },
    SetXattr { node: usize, name: usize, len: usize, mode: u8 },
    RemoveXattr { node: usize, name: usize },
    Fsync { node: usize },
    Reopen,
}

const NAMES: [&[u8]; 5] = [b"a", b"bb", b"c", b"long name \xff with bytes", b"e"];
const XATTRS: [&[u8]; 3] = [b"user.x", b"user.yy", b"trusted.z"];

/// Offsets around every border: inline, block, record, and far holes.
fn offset() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..3000, 1900usize..2200, 4000usize..4200, 8000usize..60_000, 0usize..200_000]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..50, 1000usize..2100, 4096usize..4097, 0usize..20_000]
}

fn op() -> impl Strategy<Value = Op> {
    let (n, name) = (0usize..12, 0usize..NAMES.len());
    prop_oneof![
        5 => (n.clone(), name.clone(), 0u8..6).prop_map(|(dir, name, kind)| Op::Make { dir, name, kind }),
        2 => (n.clone(), name.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(dir, name, exclusive, truncate)| Op::Create { dir, name, exclusive, truncate }),
        2 => (n.clone(), n.clone(), name.clone()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        2 => (n.clone(), name.clone()).prop_map(|(dir, name)| Op::Unlink { dir, name }),
        2 => (n.clone(), name.clone()).prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        5 => ((n.clone(), name.clone()), (n.clone(), name.clone()), 0u8..4)
            .prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        1 => (n.clone(), name.clone()).prop_map(|(dir, name)| Op::Lookup { dir, name }),
        2 => (n.clone(), prop::bool::weighted(0.2)).prop_map(|(node, truncate)| Op::Open { node, truncate }),
        2 => n.clone().prop_map(|node| Op::Release { node }),
        5 => (n.clone(), prop::option::weighted(0.8, offset()), length(), 1u8..255)
            .prop_map(|(node, offset, len, byte)| Op::Write { node, offset, len, byte }),
        3 => (n.clone(), offset()).prop_map(|(node, size)| Op::Truncate { node, size }),
        3 => (n.clone(), 0u8..6, offset(), length())
            .prop_map(|(node, mode, offset, len)| Op::Allocate { node, mode, offset, len }),
        2 => ((n.clone(), offset()), (n.clone(), offset()), length())
            .prop_map(|(from, to, len)| Op::Copy { from, to, len }),
        2 => (n.clone(), offset(), length()).prop_map(|(node, offset, len)| Op::Read { node, offset, len }),
        1 => (n.clone(), 0u32..0o1000).prop_map(|(node, mode)| Op::Chmod { node, mode }),
        2 => (n.clone(), 0usize..XATTRS.len(), 0usize..9000, 0u8..3)
            .prop_map(|(node, name, len, mode)| Op::SetXattr { node, name, len, mode }),
        1 => (n.clone(), 0usize..XATTRS.len()).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        1 => n.prop_map(|node| Op::Fsync { node }),
        1 => Just(Op::Reopen),
    ]
}

struct World {
    fs: FileSystem<MemStore>,
    model: Model,
    inos: Vec<Ino>,
    mask: u64,
}

fn open_store(store: &Arc<MemStore>, mask: u64) -> FileSystem<MemStore> {
    FileSystem::open(store.clone(), Options::default()).unwrap().with_hash_mask(mask)
}

fn errno<T>(result: crate::Result<T>) -> Result<T, Errno> {
    result.map_err(|e| e.errno())
}

impl World {
    fn new(mask: u64) -> World {
        let fs = new_fs().with_hash_mask(mask);
        World { fs, model: Model::new(), inos: vec![ROOT_INO], mask }
    }

    fn pick(&self, n: usize) -> (Id, Ino) {
        let id = n % self.inos.len();
        (id, self.inos[id])
    }

    /// The root half of the time, so that names meet.
    fn pick_dir(&self, n: usize) -> (Id, Ino) {
        if n < 4 { (0, ROOT_INO) } else { self.pick(n) }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Make { dir, name, kind } => {
                let ((id, ino), name) = (self.pick_dir(dir), NAMES[name]);
                let (made, real) = match kind {
                    0 | 1 => (
                        self.model.make(id, name, Kind::File(Vec::new()), 0o644),
                        self.fs.mknod(ROOT, ino, name, node(libc::S_IFREG | 0o666)),
                    ),
                    2 | 3 => (
                        self.model.make(id, name, Kind::Dir { entries: BTreeMap::new(), parent: id }, 0o755),
                        self.fs.mknod(ROOT, ino, name, node(libc::S_IFDIR | 0o777)),
                    ),
                    4 => (
                        self.model.make(id, name, Kind::Symlink(b"to/where".to_vec()), 0o777),
                        self.fs.symlink(ROOT, ino, name, b"to/where"),
                    ),
                    _ => (
                        self.model.make(id, name, Kind::Fifo, 0o600),
                        self.fs.mknod(ROOT, ino, name, node(libc::S_IFIFO | 0o600)),
                    ),
                };
                let real = errno(real);
                assert_eq!(made.as_ref().err(), real.as_ref().err());
                self.inos.extend(real.ok().map(|a| a.ino));
            }
            Op::Create { dir, name, exclusive, truncate } => {
                let ((id, ino), name) = (self.pick_dir(dir), NAMES[name]);
                let real = errno(self.fs.create(ROOT, ino, name, node(0o666), exclusive, truncate));
                let expected = match self.model.lookup(id, name) {
                    Ok(_) if exclusive => Err(Errno::EEXIST),
                    Ok(found) => match &mut self.model.nodes[found].kind {
                        Kind::File(bytes) => {
                            if truncate {
                                bytes.clear();
                            }
                            Ok((found, false))
                        }
                        Kind::Dir { .. } => Err(Errno::EISDIR),
                        Kind::Symlink(_) => Err(Errno::ELOOP),
                        Kind::Fifo => Err(Errno::EEXIST),
                    },
                    Err(Errno::ENOENT) => {
                        self.model.make(id, name, Kind::File(Vec::new()), 0o644).map(|made| (made, true))
                    }
                    Err(e) => Err(e),
                };
                if let Ok((attr, true)) = &real {
                    self.inos.push(attr.ino);
                }
                assert_eq!(real.map(|(attr, made)| (attr.ino, made)), expected.map(|(i, made)| (self.inos[i], made)));
                if let Ok((id, _)) = expected {
                    self.model.open(id).unwrap();
                }
            }
            Op::Link { node, dir, name } => {
                let (n, d) = (self.pick(node), self.pick_dir(dir));
                let real = self.fs.link(n.1, d.1, NAMES[name]).map(|_| ());
                assert_eq!(errno(real), self.model.link(n.0, d.0, NAMES[name]));
            }
            Op::Unlink { dir, name } => {
                let d = self.pick_dir(dir);
                assert_eq!(errno(self.fs.unlink(d.1, NAMES[name])), self.model.unlink(d.0, NAMES[name]));
            }
            Op::Rmdir { dir, name } => {
                let d = self.pick_dir(dir);
                assert_eq!(errno(self.fs.rmdir(d.1, NAMES[name])), self.model.rmdir(d.0, NAMES[name]));
            }
            Op::Rename { from, to, mode } => {
                let (f, t) = (self.pick_dir(from.0), self.pick_dir(to.0));
                let mode = match mode {
                    0 | 1 => RenameMode::Replace,
                    2 => RenameMode::NoReplace,
                    _ => RenameMode::Exchange,
                };
                let (from, to) = (NAMES[from.1], NAMES[to.1]);
                let real = self.fs.rename(ROOT, (f.1, from), (t.1, to), mode);
                assert_eq!(errno(real), self.model.rename((f.0, from), (t.0, to), mode));
            }
            Op::Lookup { dir, name } => {
                let d = self.pick_dir(dir);
                let expected = self.model.lookup(d.0, NAMES[name]).map(|id| self.inos[id]);
                assert_eq!(errno(self.fs.lookup(d.1, NAMES[name]).map(|a| a.ino)), expected);
            }
            Op::Open { node, truncate } => {
                let n = self.pick(node);
                let expected = match self.model.node(n.0) {
                    Err(e) => Err(e),
                    Ok(node) if truncate => match &mut node.kind {
                        Kind::Dir { .. } => Err(Errno::EISDIR),
                        Kind::File(bytes) => {
                            bytes.clear();
                            Ok(())
                        }
                        _ => Ok(()),
                    },
                    Ok(_) => Ok(()),
                };
                if expected.is_ok() {
                    self.model.open(n.0).unwrap();
                }
                assert_eq!(errno(self.fs.open(ROOT, n.1, truncate)), expected);
            }
            Op::Release { node } => {
                let n = self.pick(node);
                if self.model.nodes[n.0].opens > 0 {
                    self.model.nodes[n.0].opens -= 1;
                    self.fs.release(n.1);
                }
            }
            Op::Write { node, offset, len, byte } => {
                let n = self.pick(node);
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i % 7) as u8)).collect();
                let real = self.fs.write(n.1, offset.unwrap_or(77) as u64, &data, offset.is_none(), false);
                assert_eq!(errno(real), self.model.write(n.0, offset, &data));
            }
            Op::Truncate { node, size } => {
                let n = self.pick(node);
                let change = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                let real = errno(self.fs.setattr(ROOT, n.1, change)).map(|a| a.size as usize);
                let expected = self.model.bytes(n.0).map(|bytes| {
                    bytes.resize(size, 0);
                    size
                });
                assert_eq!(real, expected);
            }
            Op::Allocate { node, mode, offset, len } => {
                let n = self.pick(node);
                let (mode, zero, keep) = match mode {
                    0 => (AllocateMode::Allocate { keep_size: false }, false, false),
                    1 => (AllocateMode::Allocate { keep_size: true }, false, true),
                    2 => (AllocateMode::ZeroRange { keep_size: false }, true, false),
                    3 => (AllocateMode::ZeroRange { keep_size: true }, true, true),
                    _ => (AllocateMode::PunchHole, true, true),
                };
                let real = self.fs.fallocate(ROOT, n.1, mode, offset as u64..(offset + len) as u64);
                assert_eq!(errno(real), self.model.allocate(n.0, offset, len, zero, keep));
            }
            Op::Copy { from, to, len } => {
                let (f, t) = (self.pick(from.0), self.pick(to.0));
                let real = self.fs.copy_range((f.1, from.1 as u64), (t.1, to.1 as u64), len as u64);
                let expected = self.model.copy((f.0, from.1), (t.0, to.1), len);
                assert_eq!(errno(real).map(|n| n as usize), expected);
            }
            Op::Read { node, offset, len } => {
                let n = self.pick(node);
                let mut buf = vec![0xa5; len];
                let real = errno(self.fs.read(n.1, offset as u64, &mut buf)).map(|len| buf[..len].to_vec());
                let expected = self.model.bytes(n.0).map(|bytes| {
                    let end = bytes.len().min(offset + len);
                    bytes.get(offset..end).unwrap_or_default().to_vec()
                });
                assert_eq!(real, expected);
                self.check_holes(n);
            }
            Op::Chmod { node, mode } => {
                let n = self.pick(node);
                let real = self.fs.setattr(ROOT, n.1, SetAttr { mode: Some(mode), ..SetAttr::default() });
                let expected = self.model.node(n.0).map(|node| {
                    node.mode = mode;
                    mode
                });
                assert_eq!(errno(real).map(|a| a.mode & 0o7777), expected);
            }
            Op::SetXattr { node, name, len, mode } => {
                let (n, name) = (self.pick(node), XATTRS[name]);
                let mode = [XattrMode::Set, XattrMode::Create, XattrMode::Replace][usize::from(mode)];
                let value = vec![len as u8; len];
                let real = self.fs.setxattr(ROOT, n.1, name, &value, mode);
                let expected = self.model.node(n.0).and_then(|node| {
                    let special = !matches!(node.kind, Kind::File(_) | Kind::Dir { .. });
                    if special && name.starts_with(b"user.") {
                        return Err(Errno::EPERM);
                    }
                    match (mode, node.xattrs.contains_key(name)) {
                        (XattrMode::Create, true) => return Err(Errno::EEXIST),
                        (XattrMode::Replace, false) => return Err(Errno::ENODATA),
                        _ => {}
                    }
                    node.xattrs.insert(name.to_vec(), value);
                    Ok(())
                });
                assert_eq!(errno(real), expected);
            }
            Op::RemoveXattr { node, name } => {
                let (n, name) = (self.pick(node), XATTRS[name]);
                let expected = self.model.node(n.0).and_then(|node| {
                    let special = !matches!(node.kind, Kind::File(_) | Kind::Dir { .. });
                    if special && name.starts_with(b"user.") {
                        return Err(Errno::EPERM);
                    }
                    node.xattrs.remove(name).map(|_| ()).ok_or(Errno::ENODATA)
                });
                assert_eq!(errno(self.fs.removexattr(ROOT, n.1, name)), expected);
            }
            Op::Fsync { node } => {
                let n = self.pick(node);
                assert_eq!(errno(self.fs.fsync(n.1, false)), self.model.node(n.0).map(|_| ()));
            }
            Op::Reopen => {
                // As an unmount does, every open ends first.
                for (id, ino) in self.inos.iter().enumerate() {
                    for _ in 0..std::mem::take(&mut self.model.nodes[id].opens) {
                        self.fs.release(*ino);
                    }
                }
                self.fs = open_store(self.fs.store(), self.mask);
            }
        }
    }

    /// What the two seeks say is consistent with the contents.
    fn check_holes(&mut self, (id, ino): (Id, Ino)) {
        let Ok(bytes) = self.model.bytes(id).map(|b| b.clone()) else { return };
        let mut at = 0;
        while at < bytes.len() {
            let data = self.fs.seek_data(ino, at as u64).map_or(bytes.len(), |d| d as usize);
            assert!(bytes[at..data].iter().all(|&b| b == 0), "a hole with data");
            if data == bytes.len() {
                break;
            }
            at = self.fs.seek_hole(ino, data as u64).unwrap() as usize;
            assert!(at > data && at <= bytes.len());
        }
    }

    fn compare_all(&mut self) {
        for id in 0..self.model.nodes.len() {
            let ino = self.inos[id];
            let Ok(node) = self.model.node(id).cloned() else {
                assert_eq!(errno(self.fs.getattr(ino)).unwrap_err(), Errno::ENOENT);
                continue;
            };
            let attr = self.fs.getattr(ino).unwrap();
            assert_eq!((attr.nlink, attr.mode & 0o7777), (node.nlink, node.mode), "node {id}");
            match &node.kind {
                Kind::File(bytes) => {
                    assert_eq!(&contents(&self.fs, ino), bytes);
                    self.check_holes((id, ino));
                }
                Kind::Dir { entries, parent } => {
                    let listed: BTreeMap<Vec<u8>, Ino> =
                        list(&self.fs, ino).into_iter().map(|e| (e.name, e.ino)).collect();
                    let mut expected: BTreeMap<Vec<u8>, Ino> =
                        entries.iter().map(|(name, id)| (name.clone(), self.inos[*id])).collect();
                    if node.nlink > 0 {
                        expected.insert(b".".to_vec(), ino);
                        expected.insert(b"..".to_vec(), self.inos[*parent]);
                    }
                    assert_eq!(listed, expected);
                }
                Kind::Symlink(target) => assert_eq!(&self.fs.readlink(ino).unwrap(), target),
                Kind::Fifo => {}
            }
            let mut listed = self.fs.listxattr(ino).unwrap();
            listed.sort();
            assert_eq!(listed, node.xattrs.keys().cloned().collect::<Vec<_>>());
            for (name, value) in &node.xattrs {
                assert_eq!(&self.fs.getxattr(ino, name).unwrap(), value);
            }
            if let Some(path) = self.fs.path_of(ino) {
                assert_eq!(self.fs.resolve(&path).unwrap(), ino);
            } else {
                assert!(!self.model.is_dir(id) || node.nlink == 0, "a directory's path is known");
            }
        }
        let mut problems = Vec::new();
        check_with_mask(&**self.fs.store(), self.mask, &mut |p| problems.push(p)).unwrap();
        assert!(problems.is_empty(), "{problems:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model(ops in proptest::collection::vec(op(), 1..150), weak in any::<bool>()) {
        let mut world = World::new(if weak { 1 } else { u64::MAX });
        for op in &ops {
            world.step(op);
        }
        world.compare_all();
    }

    /// Whatever was logged up to any transaction gives a filesystem without contradictions after a crash.
    #[test]
    fn every_prefix_of_the_log_is_consistent(
        before in proptest::collection::vec(op(), 0..40),
        after in proptest::collection::vec(op(), 1..60),
        cut in 0.0f64..=1.0,
    ) {
        let mut world = World::new(u64::MAX);
        for op in &before {
            world.step(op);
        }
        world.fs.store().commit();
        for op in &after {
            world.step(op);
        }
        let logged = world.fs.store().logged_transactions();
        let recovered = world.fs.store().crash((logged as f64 * cut) as usize);
        clean(&recovered);
        FileSystem::open(Arc::new(recovered), Options::default()).unwrap();
    }
}
