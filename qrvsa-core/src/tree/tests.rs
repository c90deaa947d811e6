use std::collections::BTreeMap;

use proptest::prelude::*;

use super::mem::MemStore;
use super::node::{CONTENT_BYTES_MAX, ENTRY_BYTES};
use super::*;

type Model = BTreeMap<Key, Value>;
type Batch = BTreeMap<Key, Option<Value>>;

const OWNER: u64 = 77;

/// A pseudo-random sequence (SplitMix64), for tests that need a lot from a seed.
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn value(seed: u64, len: usize) -> Value {
    let mut mix = Mix(seed);
    (0..len).map(|_| mix.next() as u8).collect()
}

/// A tree beside its model.
struct Tree {
    store: MemStore,
    root: Root,
    model: Model,
    txg: u64,
}

impl Tree {
    fn new(store: MemStore) -> Tree {
        Tree { store, root: Root::EMPTY, model: Model::new(), txg: 0 }
    }

    fn apply(&mut self, batch: &Batch) {
        self.txg += 1;
        let batch = batch.clone();
        self.root = apply(&self.store, &self.root, self.txg, OWNER, batch.clone().into_iter()).unwrap();
        for (key, value) in batch {
            match value {
                Some(value) => self.model.insert(key, value),
                None => self.model.remove(&key),
            };
        }
    }

    /// The tree is sound, nothing leaked, and it holds what the model holds.
    fn check(&self) {
        let report = verify(&self.store, &self.root, &mut |owner| owner == OWNER);
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        assert_eq!(report.nodes, self.store.live_nodes() as u64, "every live node is reachable");
        let all = scan(&self.store, &self.root, Key::MIN, Key::MAX, usize::MAX).unwrap();
        assert!(all.iter().map(|(k, v)| (k, v)).eq(&self.model), "a scan sees the model");
        assert_eq!(self.root.items, self.model.len() as u64);
        let mut bytes = Vec::new();
        self.root.encode(&mut bytes);
        let len = bytes.len();
        bytes.push(0xee);
        assert_eq!(Root::decode(&bytes).unwrap(), (self.root.clone(), len));
    }

    fn check_lookups(&self, keys: impl Iterator<Item = Key>) {
        for key in keys {
            assert_eq!(get(&self.store, &self.root, key).unwrap().as_ref(), self.model.get(&key), "{key:?}");
        }
    }

    /// Leaves the items need at the least.
    fn ideal_leaves(&self) -> usize {
        let bytes: usize = self.model.values().map(|v| ENTRY_BYTES + v.len()).sum();
        bytes.div_ceil(CONTENT_BYTES_MAX)
    }
}

/// What kind of values an operation writes.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..80, 2 => 80usize..1000, 1 => 1000..=VALUE_BYTES_MAX, 1 => 5000..=VALUE_BYTES_MAX]
}

#[derive(Clone, Debug)]
enum Change {
    /// Puts scattered items.
    Put(Vec<(u16, u8, usize)>),
    /// Deletes scattered items, present or not.
    Delete(Vec<u16>),
    /// Deletes a range of keys.
    DeleteRange(u16, u16),
    /// Puts a dense range of keys with equally long values.
    PutRange(u16, u16, usize),
    /// Puts what is already there.
    Same(u16, u16),
}

fn key(n: u16) -> Key {
    // Spreads over objects, kinds and offsets without losing the order of `n`.
    Key::new(u64::from(n >> 9) << 40, (n >> 6) as u8 & 7, u64::from(n & 63) << 20)
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => proptest::collection::vec((any::<u16>(), any::<u8>(), lengths()), 1..120).prop_map(Change::Put),
        2 => proptest::collection::vec(any::<u16>(), 1..200).prop_map(Change::Delete),
        2 => (any::<u16>(), 0u16..20_000).prop_map(|(a, n)| Change::DeleteRange(a, n)),
        2 => (any::<u16>(), 0u16..600, lengths()).prop_map(|(a, n, len)| Change::PutRange(a, n, len)),
        1 => (any::<u16>(), 0u16..5000).prop_map(|(a, n)| Change::Same(a, n)),
    ]
}

fn batch_of(change: &Change, model: &Model) -> Batch {
    let existing = |a: u16, n: u16| model.range(key(a)..=key(a.saturating_add(n)));
    match change {
        Change::Put(puts) => puts.iter().map(|&(k, s, len)| (key(k), Some(value(s.into(), len)))).collect(),
        Change::Delete(keys) => {
            // Half of them near something that exists.
            let near = |k: u16| model.range(key(k)..).next().map(|(key, _)| *key);
            keys.iter().map(|&k| (if k % 2 == 0 { near(k).unwrap_or(key(k)) } else { key(k) }, None)).collect()
        }
        &Change::DeleteRange(a, n) => existing(a, n).map(|(k, _)| (*k, None)).collect(),
        &Change::PutRange(a, n, len) => {
            (a..a.saturating_add(n)).map(|k| (key(k), Some(value(k.into(), len)))).collect()
        }
        &Change::Same(a, n) => existing(a, n).map(|(k, v)| (*k, Some(v.clone()))).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn batches_against_a_map(
        steps in proptest::collection::vec(changes(), 1..25),
        wide in any::<bool>(),
        probes in proptest::collection::vec(any::<u16>(), 20),
    ) {
        // With 255 checksums to a pointer, internal nodes hold seven children and trees get high.
        let mut tree = Tree::new(if wide { MemStore::new(200, 55) } else { MemStore::default() });
        for change in &steps {
            let batch = batch_of(change, &tree.model);
            let (before, writes) = (tree.root.clone(), tree.store.writes());
            tree.apply(&batch);
            if matches!(change, Change::Same(..)) {
                prop_assert_eq!(&tree.root, &before);
                prop_assert_eq!(tree.store.writes(), writes);
            }
            tree.check();
            tree.check_lookups(probes.iter().map(|k| key(*k)));
            tree.check_lookups(batch.keys().copied());
            for pair in probes.chunks(2) {
                let (from, to) = (key(pair[0]), key(pair[1]));
                let found = scan(&tree.store, &tree.root, from, to, 50).unwrap();
                let model = (from <= to).then(|| tree.model.range(from..=to)).into_iter().flatten().take(50);
                prop_assert!(found.iter().map(|(k, v)| (k, v)).eq(model));
            }
        }
        let all: Batch = tree.model.keys().map(|k| (*k, None)).collect();
        tree.apply(&all);
        prop_assert_eq!(&tree.root, &Root::EMPTY);
        prop_assert_eq!(tree.store.live_nodes(), 0);
    }

    #[test]
    fn a_failing_store_leaves_the_old_root_whole(
        steps in proptest::collection::vec(changes(), 2..8),
        wide in any::<bool>(),
        good in 0u64..12,
        reads in any::<bool>(),
    ) {
        let mut tree = Tree::new(if wide { MemStore::new(200, 55) } else { MemStore::default() });
        for change in &steps {
            let batch = batch_of(change, &tree.model);
            let mark = tree.store.mark();
            if reads { tree.store.fail_read_after(Some(good)) } else { tree.store.fail_write_after(Some(good)) }
            let result = apply(&tree.store, &tree.root, tree.txg + 1, OWNER, batch.clone().into_iter());
            tree.store.fail_read_after(None);
            tree.store.fail_write_after(None);
            match result {
                Ok(root) => {
                    tree.root = root;
                    tree.txg += 1;
                    for (key, value) in batch {
                        match value {
                            Some(value) => tree.model.insert(key, value),
                            None => tree.model.remove(&key),
                        };
                    }
                }
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::Io);
                    tree.store.abort(mark);
                    tree.check();
                    tree.apply(&batch);
                }
            }
            tree.check();
        }
    }

    #[test]
    fn a_cursor_goes_on_after_an_error(seed in any::<u64>(), from in any::<u16>()) {
        let mut tree = Tree::new(MemStore::new(200, 55));
        let mut mix = Mix(seed);
        tree.apply(&(0..3000).map(|_| (key(mix.next() as u16), Some(value(1, 300)))).collect());
        let mut cursor = Cursor::new(&tree.store, &tree.root, key(from), Key::MAX);
        let mut found = Vec::new();
        loop {
            tree.store.fail_read_after((mix.below(4) == 0).then_some(mix.below(3)));
            match cursor.next() {
                Ok(Some(item)) => found.push(item),
                Ok(None) => break,
                Err(_) => {}
            }
        }
        prop_assert!(found.iter().map(|(k, v)| (k, v)).eq(tree.model.range(key(from)..)));
    }
}

#[test]
fn an_empty_tree_is_empty() {
    let mut tree = Tree::new(MemStore::default());
    tree.check();
    tree.check_lookups([Key::MIN, Key::MAX].into_iter());
    tree.apply(&Batch::from([(Key::MIN, None), (Key::MAX, None)]));
    assert_eq!(tree.root, Root::EMPTY);
    tree.apply(&Batch::from([(Key::MIN, Some(value(1, 0))), (Key::MAX, Some(value(2, VALUE_BYTES_MAX)))]));
    tree.check();
    tree.check_lookups([Key::MIN, Key::MAX, key(9)].into_iter());
    tree.apply(&Batch::from([(Key::MIN, None), (Key::MAX, None)]));
    assert_eq!((&tree.root, tree.store.live_nodes()), (&Root::EMPTY, 0));
}

#[test]
fn only_the_touched_path_is_rewritten() {
    let mut tree = Tree::new(MemStore::default());
    tree.apply(&(0..60_000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 60)))).collect());
    assert!(tree.root.height == 3 && tree.root.nodes > 300, "{:?}", tree.root);
    for i in [0u64, 31_111, 59_999] {
        let (reads, writes) = (tree.store.reads(), tree.store.writes());
        tree.apply(&Batch::from([(Key::new(i, 0, 0), Some(value(i + 1, 60)))]));
        assert_eq!(tree.store.writes() - writes, 3);
        assert!(tree.store.reads() - reads <= 6, "the leaf once, internal nodes once for each level below");
        // Changes that are none.
        let writes = tree.store.writes();
        tree.apply(&Batch::from([(Key::new(i, 0, 0), Some(value(i + 1, 60))), (Key::new(i, 0, 1), None)]));
        assert_eq!(tree.store.writes(), writes);
    }
    tree.check();
}

#[test]
fn sequential_inserts_fill_nodes_well() {
    for batch_items in [40, 700, 9000] {
        let mut tree = Tree::new(MemStore::default());
        let items: Vec<Key> = (0..30_000u64).map(|i| Key::new(5, 1, i)).collect();
        for chunk in items.chunks(batch_items) {
            tree.apply(&chunk.iter().map(|k| (*k, Some(value(k.offset, 50)))).collect());
        }
        tree.check();
        let fill = tree.ideal_leaves() as f64 / tree.root.nodes as f64;
        assert!(fill > 0.8, "{fill} with batches of {batch_items}");
    }
}

#[test]
fn random_inserts_and_updates_keep_nodes_filled() {
    let mut tree = Tree::new(MemStore::default());
    let mut mix = Mix(4);
    for _ in 0..60 {
        tree.apply(&(0..500).map(|_| (Key::new(mix.next(), 0, 0), Some(value(1, 50)))).collect());
    }
    tree.check();
    let fill = tree.ideal_leaves() as f64 / tree.root.nodes as f64;
    assert!(fill > 0.6, "{fill} after random inserts");
    let keys: Vec<Key> = tree.model.keys().copied().collect();
    for txg in 0..30 {
        tree.apply(&(0..3000).map(|_| (keys[mix.below(30_000) as usize], Some(value(txg, 50)))).collect());
    }
    tree.check();
    let fill = tree.ideal_leaves() as f64 / tree.root.nodes as f64;
    assert!(fill > 0.6, "{fill} after random updates");
}

#[test]
fn random_deletes_leave_few_nodes() {
    for wide in [false, true] {
        let mut tree = Tree::new(if wide { MemStore::new(200, 55) } else { MemStore::default() });
        let mut mix = Mix(11);
        tree.apply(&(0..40_000).map(|_| (Key::new(mix.next(), 0, 0), Some(value(1, 50)))).collect());
        let mut keys: Vec<Key> = tree.model.keys().copied().collect();
        while keys.len() > 500 {
            let batch =
                (0..400).map(|_| (keys.swap_remove(mix.below(keys.len() as u64) as usize), None)).collect::<Batch>();
            tree.apply(&batch);
            let reachable = tree.root.nodes as usize;
            // With absurd pointers, a full internal node has only seven children.
            let ideal = 1 + tree.ideal_leaves() * if wide { 7 } else { 6 } / 6;
            assert!(reachable <= 4 * ideal, "{reachable} nodes, {ideal} would do, for {} items", keys.len());
        }
        tree.check();
    }
}

#[test]
fn a_tree_shrinks_to_its_last_leaf_from_any_side() {
    for wide in [false, true] {
        for kept in [0usize, 9_999, 20_000 - 1] {
            let mut tree = Tree::new(if wide { MemStore::new(200, 55) } else { MemStore::default() });
            tree.apply(&(0..20_000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 100)))).collect());
            let all: Vec<Key> = tree.model.keys().copied().collect();
            let high = tree.root.height;
            // All but one, at once.
            let mut batch: Batch = all.iter().map(|k| (*k, None)).collect();
            batch.remove(&all[kept]);
            tree.apply(&batch);
            tree.check();
            assert_eq!((tree.root.height, tree.root.nodes), (1, 1), "from height {high}");
            // The same leaf by leaf: everything except a whole untouched leaf.
            tree.apply(&(0..20_000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 100)))).collect());
            for chunk in all.chunks(1500) {
                let far = |k: &&Key| k.object.abs_diff(kept as u64) > 400;
                tree.apply(&chunk.iter().filter(far).map(|k| (*k, None)).collect());
                tree.check();
            }
            assert!(tree.root.nodes <= 13, "{:?}", tree.root);
        }
    }
}

/// Leaves in order, with the bytes they use.
fn leaves(tree: &Tree) -> Vec<(Key, usize)> {
    struct Leaves(Vec<(Key, usize)>);
    impl Visitor for Leaves {
        fn enter(&mut self, _: &Place<'_>) -> Result<Step> {
            Ok(Step::Into)
        }
        fn node(&mut self, _: &Place<'_>, node: &Arc<Node>) -> Result<Step> {
            if node.is_leaf() {
                self.0.push((node.first_key(), node.used_bytes()));
            }
            Ok(Step::Into)
        }
    }
    let mut leaves = Leaves(Vec::new());
    walk(&tree.store, &tree.root, Key::MIN, &mut leaves).unwrap();
    leaves.0
}

/// Five leaves of 50-byte values, and the keys in each.
fn five_leaves() -> (Tree, Vec<Vec<Key>>) {
    let mut tree = Tree::new(MemStore::default());
    tree.apply(&(0..1050u64).map(|i| (Key::new(i * 10, 0, 0), Some(value(i, 50)))).collect());
    let starts: Vec<Key> = leaves(&tree).into_iter().map(|(key, _)| key).collect();
    assert_eq!(starts.len(), 5);
    let ends = starts[1..].iter().copied().chain([Key::MAX]);
    let keys = starts.iter().zip(ends).map(|(a, b)| tree.model.range(*a..b).map(|(k, _)| *k).collect()).collect();
    (tree, keys)
}

#[test]
fn an_underfull_leaf_goes_into_its_neighbour() {
    let delete_all_but_one = |keys: &[Key]| keys[1..].iter().map(|k| (*k, None)).collect::<Batch>();
    for emptied in 0..5 {
        let (mut tree, keys) = five_leaves();
        // Make room in the neighbours.
        let neighbours = [emptied.max(1) - 1, (emptied + 1).min(4)];
        tree.apply(&neighbours.iter().flat_map(|n| keys[*n].iter().skip(1).step_by(3)).map(|k| (*k, None)).collect());
        assert_eq!(leaves(&tree).len(), 5);
        let writes = tree.store.writes();
        let mut batch = delete_all_but_one(&keys[emptied]);
        if emptied == 2 || emptied == 4 {
            // Edits of the neighbour that change nothing do not protect it.
            batch.insert(Key::new(keys[3][9].object + 1, 0, 0), None);
        }
        tree.apply(&batch);
        tree.check();
        assert_eq!(leaves(&tree).len(), 4, "leaf {emptied}");
        assert_eq!(tree.store.writes() - writes, 2, "the merged leaf and the root");
    }
}

#[test]
fn scattered_small_deletes_leave_few_nodes() {
    let mut tree = Tree::new(MemStore::default());
    let mut mix = Mix(3);
    tree.apply(&(0..20_000).map(|_| (Key::new(mix.next(), 0, 0), Some(value(1, 50)))).collect());
    let mut keys: Vec<Key> = tree.model.keys().copied().collect();
    while keys.len() > 300 {
        tree.apply(&(0..20).map(|_| (keys.swap_remove(mix.below(keys.len() as u64) as usize), None)).collect());
        let ideal = tree.ideal_leaves() + 1;
        assert!(tree.root.nodes as usize <= 4 * ideal, "{} nodes, {ideal} would do", tree.root.nodes);
    }
    tree.check();
}

#[test]
fn a_growing_end_is_filled_whatever_stands_behind_it() {
    // New items at the end of the second leaf, and an edit of the third that changes nothing.
    let mut fills = Vec::new();
    for with_noop in [false, true] {
        let (mut tree, keys) = five_leaves();
        let last = *keys[1].last().unwrap();
        let mut batch: Batch = (1..60).map(|i| (Key::new(last.object, 0, i), Some(value(i, 50)))).collect();
        if with_noop {
            batch.insert(Key::new(keys[2][3].object, 0, 1), None);
        }
        tree.apply(&batch);
        tree.check();
        fills.push(leaves(&tree));
    }
    assert_eq!(fills[0], fills[1]);
    assert!(fills[0].len() == 6 && fills[0][1].1 > 14_000 && fills[0][2].1 < 8_000, "{:?}", fills[0]);
}

#[test]
fn full_neighbours_that_are_rewritten_do_not_multiply() {
    let (mut tree, keys) = five_leaves();
    for pair in [[0, 1], [2, 3], [1, 2]] {
        tree.apply(&pair.iter().flat_map(|n| &keys[*n]).map(|k| (*k, Some(value(9, 54)))).collect());
        tree.check();
        assert_eq!(leaves(&tree).len(), 5);
    }
}

#[test]
fn any_part_of_a_high_tree_may_go() {
    let mut mix = Mix(5);
    for round in 0..120 {
        let mut tree = Tree::new(MemStore::new(200, 55));
        tree.apply(&(0..3000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 600)))).collect());
        assert!(tree.root.height >= 4);
        for _ in 0..3 {
            // Of each part: everything, nothing, one item, or about a leaf stays.
            let part_items = [250, 750, 1500][mix.below(3) as usize];
            let fates: Vec<u64> = (0..3000 / part_items).map(|_| mix.below(5)).collect();
            let goes = |key: &&Key| {
                let at = key.object % part_items;
                match fates[(key.object / part_items) as usize] {
                    0 => false,
                    1 => at != part_items / 2,
                    2 => !(100..124).contains(&at),
                    _ => true,
                }
            };
            tree.apply(&tree.model.keys().filter(goes).map(|k| (*k, None)).collect());
            tree.check();
        }
        let rest: Batch = (round * 20..3000u64).step_by(7).map(|i| (Key::new(i, 0, 0), Some(value(i, 90)))).collect();
        tree.apply(&rest);
        tree.check();
    }
}

#[test]
fn untouched_subtrees_on_either_side_stay() {
    let full = || {
        let mut tree = Tree::new(MemStore::new(200, 55));
        tree.apply(&(0..3000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 600)))).collect());
        tree
    };
    for (Key { object: boundary, .. }, _) in leaves(&full()).into_iter().skip(1) {
        for front in [false, true] {
            let mut tree = full();
            // All on one side of the boundary goes, but for one item.
            let (range, stays) =
                if front { (0..boundary, boundary / 2) } else { (boundary..3000, boundary.midpoint(3000)) };
            tree.apply(&range.filter(|i| *i != stays).map(|i| (Key::new(i, 0, 0), None)).collect());
            tree.check();
        }
    }
}

#[test]
fn a_chain_of_single_children_is_not_left_as_the_root() {
    let mut tree = Tree::new(MemStore::new(200, 55));
    tree.apply(&(0..3000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 600)))).collect());
    let delete = |range: std::ops::Range<u64>| range.map(|i| (Key::new(i, 0, 0), None)).collect::<Batch>();
    // One leaf is left of the first half, below an internal node of its own; then the second half goes.
    tree.apply(&delete(5..1800));
    tree.check();
    tree.apply(&delete(1800..3000));
    tree.check();
    assert_eq!((tree.root.height, tree.root.items), (1, 5));
}

#[test]
fn huge_batches_into_one_leaf_are_cut_on_the_way() {
    let mut tree = Tree::new(MemStore::default());
    tree.apply(&Batch::from([(Key::MIN, Some(value(1, 10))), (Key::MAX, Some(value(1, 10)))]));
    tree.apply(&(0..6000u64).map(|i| (Key::new(i, 1, i), Some(value(i, 1500)))).collect());
    tree.check();
    assert!(tree.root.nodes > 500);
}

#[test]
fn batches_out_of_order_and_oversized_values_are_refused() {
    let store = MemStore::default();
    let item = |n| (key(n), Some(value(1, 10)));
    for batch in [vec![item(2), item(1)], vec![item(2), item(2)], vec![(key(1), Some(value(1, VALUE_BYTES_MAX + 1)))]] {
        let error = apply(&store, &Root::EMPTY, 1, OWNER, batch.into_iter()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn hostile_roots_are_refused() {
    assert!(Root::decode(&[]).is_err());
    let mut tree = Tree::new(MemStore::default());
    tree.apply(&Batch::from([item_at(1)]));
    let mut bytes = Vec::new();
    tree.root.encode(&mut bytes);
    for cut in 0..bytes.len() {
        assert!(Root::decode(&bytes[..cut]).is_err());
    }
    for (at, value) in [(0, 0), (0, 2), (0, 33), (8, 0), (16, 0)] {
        let mut bent = bytes.clone();
        bent[at] = value;
        assert_eq!(Root::decode(&bent).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    bytes[3] = 1;
    assert_eq!(Root::decode(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
}

fn item_at(n: u16) -> (Key, Option<Value>) {
    (key(n), Some(value(n.into(), 100)))
}

/// Counts what a walk shows.
#[derive(Default)]
struct Count {
    leaves_seen: Vec<Key>,
    items: usize,
    internal: usize,
    over_leaves: bool,
    born_after: u64,
    stop_after: Option<usize>,
}

impl Visitor for Count {
    fn enter(&mut self, place: &Place<'_>) -> Result<Step> {
        if place.pointer.birth <= self.born_after {
            return Ok(Step::Over);
        }
        if place.level == 0 {
            if self.stop_after == Some(self.leaves_seen.len()) {
                return Ok(Step::Stop);
            }
            self.leaves_seen.push(place.first_key);
            return Ok(if self.over_leaves { Step::Over } else { Step::Into });
        }
        self.internal += 1;
        Ok(Step::Into)
    }

    fn node(&mut self, _: &Place<'_>, node: &Arc<Node>) -> Result<Step> {
        if node.is_leaf() {
            self.items += node.items().len();
        }
        Ok(Step::Into)
    }
}

#[test]
fn walks_visit_resume_and_leave_out() {
    let mut tree = Tree::new(MemStore::new(200, 55));
    tree.apply(&(0..5000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 300)))).collect());
    let mut all = Count::default();
    walk(&tree.store, &tree.root, Key::MIN, &mut all).unwrap();
    assert_eq!(all.items, 5000);
    assert_eq!(all.internal + all.leaves_seen.len(), tree.root.nodes as usize);
    assert!(all.leaves_seen.is_sorted());

    let reads = tree.store.reads();
    let mut unread = Count { over_leaves: true, ..Count::default() };
    walk(&tree.store, &tree.root, Key::MIN, &mut unread).unwrap();
    assert_eq!(unread.leaves_seen, all.leaves_seen);
    assert_eq!(tree.store.reads() - reads, all.internal as u64);

    let mut part = Count { stop_after: Some(10), ..Count::default() };
    walk(&tree.store, &tree.root, Key::MIN, &mut part).unwrap();
    assert_eq!(part.leaves_seen, all.leaves_seen[..10]);
    let mut rest = Count::default();
    walk(&tree.store, &tree.root, *part.leaves_seen.last().unwrap(), &mut rest).unwrap();
    assert_eq!(rest.leaves_seen, all.leaves_seen[9..]);

    tree.apply(&Batch::from([(Key::new(2000, 0, 0), None)]));
    let mut new = Count { born_after: 1, ..Count::default() };
    walk(&tree.store, &tree.root, Key::MIN, &mut new).unwrap();
    assert_eq!((new.leaves_seen.len(), new.internal), (1, usize::from(tree.root.height) - 1));
}

/// Replaces the last leaf of a small tree and returns what `verify` says.
fn problems_after(change: impl FnOnce(&Node) -> AlignedBuf) -> Vec<Problem> {
    let mut tree = Tree::new(MemStore::default());
    tree.apply(&(0..2000u64).map(|i| (Key::new(i, 0, 0), Some(value(i, 60)))).collect());
    let root = tree.store.read_node(tree.root.pointer.as_ref().unwrap()).unwrap();
    let pointer = root.pointer(1);
    let leaf = tree.store.read_node(pointer).unwrap();
    tree.store.corrupt(pointer, change(&leaf));
    verify(&tree.store, &tree.root, &mut |owner| owner == OWNER).problems
}

fn rebuilt(items: &[(Key, Value)], level: u8, owner: u64, birth: u64) -> AlignedBuf {
    let mut run = node::ItemRun::default();
    for (key, value) in items {
        run.push(*key, value);
    }
    run.encode(0..items.len(), level, owner, birth)
}

#[test]
fn verify_names_each_kind_of_damage() {
    let items = |node: &Node| node.items().map(|(k, v)| (k, Value::from(v))).collect::<Vec<_>>();
    assert!(problems_after(|n| AlignedBuf::from_slice(n.bytes())).is_empty());
    let says = |problems: Vec<Problem>, text: &str| {
        assert!(problems.iter().any(|p| p.what.contains(text)), "{text}: {problems:#?}");
    };
    says(problems_after(|n| rebuilt(&items(n), 0, OWNER + 1, n.birth())), "no part in this one");
    says(problems_after(|n| rebuilt(&items(n), 0, OWNER, n.birth() + 1)), "its pointer says");
    says(problems_after(|n| rebuilt(&items(n)[1..], 0, OWNER, n.birth())), "listed under");
    says(problems_after(|n| rebuilt(&items(n)[..9], 0, OWNER, n.birth())), "the root counts");
    says(
        problems_after(|n| {
            let mut items = items(n);
            items.last_mut().unwrap().0 = Key::MAX;
            rebuilt(&items, 0, OWNER, n.birth())
        }),
        "the next node begins at",
    );
    says(
        problems_after(|n| {
            let pointer =
                Pointer { group: 0, row: 0, birth: 1, blocks: 1, width: 1, parity: 0, checksums: Box::new([0]) };
            let mut bytes = Vec::new();
            pointer.encode(&mut bytes);
            rebuilt(&[(n.first_key(), bytes.into())], 1, OWNER, n.birth())
        }),
        "level 1 where level 0 belongs",
    );
}

#[test]
fn a_damaged_tree_is_not_made_worse() {
    let (mut tree, keys) = five_leaves();
    let root = tree.store.read_node(tree.root.pointer.as_ref().unwrap()).unwrap();
    let pointer = root.pointer(1);
    let leaf = tree.store.read_node(pointer).unwrap();
    let mut items: Vec<(Key, Value)> = leaf.items().map(|(k, v)| (k, Value::from(v))).collect();
    items.last_mut().unwrap().0 = Key::MAX;
    tree.store.corrupt(pointer, rebuilt(&items, 0, OWNER, leaf.birth()));
    let touching = |leaf: usize| keys[leaf].iter().skip(1).map(|k| (*k, None)).collect::<Batch>();
    // Touched itself; about to be taken in by its neighbour.
    for batch in [touching(1), touching(0)] {
        let error = apply(&tree.store, &tree.root, 2, OWNER, batch.into_iter()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    // Other leaves can still be changed.
    tree.txg = 1;
    let batch = Batch::from([(keys[4][7], None)]);
    tree.apply(&batch);
    assert_eq!(get(&tree.store, &tree.root, keys[4][7]).unwrap(), None);
}

#[test]
fn limits_agree_with_the_store_seam() {
    assert_eq!(VALUE_BYTES_MAX, crate::item::VALUE_BYTES_MAX);
    const { assert!(2 * (VALUE_BYTES_MAX + ENTRY_BYTES) <= CONTENT_BYTES_MAX) };
}
