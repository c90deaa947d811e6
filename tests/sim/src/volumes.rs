//! Volumes as they should be: of every 4 KiB block the versions that a crash may leave, from the last durable one on.
//!
//! A crash leaves each block as the last durable write made it, or as a later one did; an atomic write is there as a whole
//! or not at all. Versions tell that apart, as every write has bytes of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use qrvsa_core::env::{Random, SeededRandom};
use qrvsa_core::fs::store::{ObjectRef, Store};
use qrvsa_core::volume::{Spec, VOLUME_OBJECT};
use qrvsa_core::{Error, ErrorKind, Result};
use xxhash_rust::xxh3::xxh3_64;

use crate::image::BLOCK;
use crate::plan::pick;
use crate::session::{Session, pattern};

/// How a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A write.
    Plain,
    /// As a whole or not at all.
    Atomic,
    /// Compared with what is there first, which is equal.
    Compared,
}

/// What is done to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Makes it.
    Create(Spec),
    /// Destroys it.
    Destroy,
    /// Writes so many bytes drawn from a seed at an offset; durable at the return or not.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
        /// What they are drawn from.
        seed: u64,
        /// How.
        way: Way,
        /// Whether it is durable at the return.
        fua: bool,
    },
    /// Writes so many bytes drawn from a seed at an offset, has them put on their way to the log, and overwrites them before
    /// that is waited for: what another caller can do at that moment.
    Overtake(u64, usize, u64),
    /// Writes so many bytes drawn from a seed at an offset as a whole or not at all, and discards a part of them before that
    /// is durable; behind so many writes there that are on their way to the log.
    Pierce {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
        /// What is discarded, in bytes of the volume.
        hole: (u64, u64),
        /// What they are drawn from.
        seed: u64,
        /// Writes before it: they take room in the block of the log that it would be in.
        crowd: u64,
    },
    /// Zeroes so many bytes from an offset, and gives back their space.
    Discard(u64, u64),
    /// Makes everything durable.
    Flush,
    /// Sets the size.
    Resize(u64),
    /// Reads everything and compares.
    Read,
}

/// What is done to which volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// The volume's name.
    pub volume: String,
    /// What is done.
    pub verb: Verb,
}

type Block = Arc<Vec<u8>>;

/// A write that must not be there in part: what it did to each block.
#[derive(Clone, Default)]
struct Atomic(BTreeMap<u64, Part>);

/// A block of such a write. Versions go by their digests.
#[derive(Clone)]
struct Part {
    /// Bytes of the block that it wrote and nothing has overwritten since, in the newest version.
    left: Vec<Range<usize>>,
    /// Versions before it.
    before: BTreeSet<u64>,
    /// Versions with bytes of it: its own, and those that later writes made of it and left some.
    with: BTreeSet<u64>,
    /// Versions since without any.
    without: BTreeSet<u64>,
}

/// A volume as seen, and what a crash may leave of it.
#[derive(Clone)]
pub struct Model {
    /// What it was made with.
    pub spec: Spec,
    /// Size as seen.
    pub size: u64,
    /// Other sizes that a crash may leave.
    sizes: Vec<u64>,
    /// A crash may leave it away.
    maybe_absent: bool,
    /// Versions of each block, the durable one first and the newest last. A block that is not here is zero.
    blocks: BTreeMap<u64, Vec<Block>>,
    atomics: Vec<Atomic>,
    /// Digests of all that was ever written to a block.
    ever: BTreeSet<(u64, u64)>,
}

/// Volumes by name.
pub type Models = BTreeMap<String, Model>;
/// Contents by name.
pub type Contents = BTreeMap<String, Vec<u8>>;

fn zero() -> Block {
    Arc::new(vec![0; BLOCK])
}

fn at(bytes: &[u8], block: u64) -> Vec<u8> {
    let start = bytes.len().min(block as usize * BLOCK);
    let mut found = bytes[start..bytes.len().min(start + BLOCK)].to_vec();
    found.resize(BLOCK, 0);
    found
}

/// What is left of a range.
fn without(range: &Range<usize>, taken: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let before = range.start..range.end.min(taken.start);
    let behind = range.start.max(taken.end)..range.end;
    [before, behind].into_iter().filter(|part| !part.is_empty())
}

impl Model {
    /// A new one.
    pub fn new(spec: Spec) -> Model {
        Model {
            spec,
            size: spec.size_bytes,
            sizes: Vec::new(),
            maybe_absent: false,
            blocks: BTreeMap::new(),
            atomics: Vec::new(),
            ever: BTreeSet::new(),
        }
    }

    fn newest(&self, block: u64) -> Block {
        self.blocks.get(&block).and_then(|v| v.last()).cloned().unwrap_or_else(zero)
    }

    /// All of it, as seen.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        for (block, versions) in &self.blocks {
            let start = *block as usize * BLOCK;
            if let (Some(newest), true) = (versions.last(), start < bytes.len()) {
                let end = bytes.len().min(start + BLOCK);
                bytes[start..end].copy_from_slice(&newest[..end - start]);
            }
        }
        bytes
    }

    /// Changes bytes: a new version of each block.
    fn put(&mut self, offset: u64, data: &[u8], atomic: bool) {
        let end = offset + data.len() as u64;
        let mut whole = Atomic::default();
        for number in offset / BLOCK as u64..end.div_ceil(BLOCK as u64) {
            let mut block = self.newest(number).as_ref().clone();
            let start = number * BLOCK as u64;
            let (from, to) = (offset.max(start), end.min(start + BLOCK as u64));
            block[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            let digest = xxh3_64(&block);
            self.ever.insert((number, digest));
            let versions = self.blocks.entry(number).or_insert_with(|| vec![zero()]);
            let span = (from - start) as usize..(to - start) as usize;
            for part in self.atomics.iter_mut().filter_map(|a| a.0.get_mut(&number)) {
                part.left = part.left.iter().flat_map(|r| without(r, &span)).collect();
                let into = if part.left.is_empty() { &mut part.without } else { &mut part.with };
                into.insert(digest);
            }
            let before = versions.iter().map(|v| xxh3_64(v)).collect();
            let left = vec![span];
            whole.0.insert(number, Part { left, before, with: BTreeSet::from([digest]), without: BTreeSet::new() });
            versions.push(Arc::new(block));
        }
        if atomic {
            self.atomics.push(whole);
        }
    }

    /// What is seen of these bytes is durable.
    fn settle_range(&mut self, offset: u64, len: u64) {
        let range = offset / BLOCK as u64..(offset + len).div_ceil(BLOCK as u64);
        for (_, versions) in self.blocks.range_mut(range) {
            versions.drain(..versions.len() - 1);
        }
    }

    /// What is seen is durable.
    pub fn settle(&mut self) {
        self.settle_range(0, u64::MAX >> 1);
        self.atomics.clear();
        self.sizes.clear();
        self.maybe_absent = false;
    }

    /// Whether a crash may leave these bytes; says what is wrong if not.
    fn may_be(&self, found: &[u8]) -> std::result::Result<(), String> {
        let size = found.len() as u64;
        if size != self.size && !self.sizes.contains(&size) {
            return Err(format!("{size} bytes, not {} or {:?}", self.size, self.sizes));
        }
        let cut = |block: &[u8], number: u64| {
            let keep = size.saturating_sub(number * BLOCK as u64).min(BLOCK as u64) as usize;
            let mut block = block.to_vec();
            block[keep..].fill(0);
            block
        };
        for number in 0..size.div_ceil(BLOCK as u64) {
            let block = at(found, number);
            let zeros = [zero()];
            let versions = self.blocks.get(&number).map_or(&zeros[..], |v| v.as_slice());
            if !versions.iter().any(|v| cut(v, number) == block) {
                let zeros = if block.iter().all(|b| *b == 0) { " (it is zero)" } else { "" };
                return Err(format!("block {number} is none of its {} versions{zeros}", versions.len()));
            }
        }
        for Atomic(parts) in &self.atomics {
            // A block may look as it did before by chance (of a few bytes) or as both are zero: then it says nothing.
            let is_new = |(number, part): &(&u64, &Part)| {
                let there = xxh3_64(&at(found, **number));
                part.with.contains(&there) && !part.before.contains(&there)
            };
            let is_old = |(number, part): &(&u64, &Part)| {
                let there = xxh3_64(&at(found, **number));
                part.before.contains(&there) && !part.with.contains(&there) && !part.without.contains(&there)
            };
            let (new, old) = (parts.iter().filter(is_new), parts.iter().filter(is_old));
            let (new, old): (Vec<&u64>, Vec<&u64>) = (new.map(|p| p.0).collect(), old.map(|p| p.0).collect());
            if !new.is_empty() && !old.is_empty() {
                return Err(format!("an atomic write is there in part: in blocks {new:?}, not in {old:?}"));
            }
        }
        Ok(())
    }

    /// From here on it is what was found.
    pub fn adopt(&mut self, found: &[u8]) {
        self.size = found.len() as u64;
        self.blocks.clear();
        for number in 0..self.size.div_ceil(BLOCK as u64) {
            let block = at(found, number);
            if block.iter().any(|b| *b != 0) {
                self.blocks.insert(number, vec![Arc::new(block)]);
            }
        }
        self.settle();
    }

    /// Beyond the promise: every block was written there once.
    pub fn was_written(&self, found: &[u8]) -> std::result::Result<(), String> {
        for number in 0..(found.len() as u64).div_ceil(BLOCK as u64) {
            let block = at(found, number);
            if block.iter().any(|b| *b != 0) && !self.ever.contains(&(number, xxh3_64(&block))) {
                return Err(format!("block {number}: these bytes were never written there"));
            }
        }
        Ok(())
    }
}

/// Compares all volumes with what may be, and goes on with what was found.
///
/// # Errors
/// What is wrong, in words.
pub fn compare(models: &mut Models, found: &Contents) -> std::result::Result<(), String> {
    for (name, bytes) in found {
        let Some(model) = models.get_mut(name) else { return Err(format!("volume {name} should not be there")) };
        model.may_be(bytes).map_err(|e| format!("volume {name}: {e}"))?;
        model.adopt(bytes);
    }
    if let Some((name, _)) = models.iter().find(|(name, m)| !found.contains_key(*name) && !m.maybe_absent) {
        return Err(format!("volume {name} is missing"));
    }
    models.retain(|name, _| found.contains_key(name));
    Ok(())
}

/// What the model makes of a deed. `done`: it returned without an error; otherwise it may have been done, or not.
pub fn follow(models: &mut Models, deed: &Deed, done: bool) {
    let name = &deed.volume;
    match &deed.verb {
        Verb::Create(spec) => {
            let maybe_absent = !done;
            models.insert(name.clone(), Model { maybe_absent, ..Model::new(*spec) });
        }
        Verb::Destroy if done => drop(models.remove(name)),
        verb => {
            let Some(model) = models.get_mut(name) else { return };
            match verb {
                Verb::Destroy => model.maybe_absent = true,
                Verb::Write { offset, len, seed, way, fua } => {
                    model.put(*offset, &pattern(*seed, *len), *way != Way::Plain);
                    if done && *fua {
                        model.settle_range(*offset, *len as u64);
                    }
                }
                Verb::Overtake(offset, len, seed) => {
                    model.put(*offset, &pattern(*seed, *len), false);
                    model.put(*offset, &pattern(*seed ^ 1 << 40, *len), false);
                }
                Verb::Pierce { offset, len, hole, seed, crowd } => {
                    (0..*crowd).for_each(|i| model.put(*offset, &pattern(seed ^ (i + 1) << 40, *len), false));
                    model.put(*offset, &pattern(*seed, *len), true);
                    model.put(hole.0, &vec![0; (hole.1 - hole.0) as usize], false);
                }
                Verb::Discard(offset, len) => model.put(*offset, &vec![0; *len as usize], false),
                Verb::Flush if done => {
                    let absent = model.maybe_absent;
                    model.settle();
                    model.maybe_absent = absent;
                }
                Verb::Resize(size) => {
                    let old = model.size;
                    if *size < old {
                        model.put(*size, &vec![0; (old - size) as usize], false);
                    }
                    if done {
                        model.size = *size;
                        model.settle();
                    } else {
                        model.sizes.push(*size);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Does it. The model is looked at and not changed.
///
/// # Errors
/// Those of the engine; `Corrupt` if a read returned other bytes than the model has.
pub fn run(session: &mut Session, models: &Models, deed: &Deed) -> Result<()> {
    let name = &deed.volume;
    match &deed.verb {
        Verb::Create(spec) => {
            session.pool.create_volume(name, spec)?;
            session.volumes.insert(name.clone(), session.pool.open_volume(name)?);
            return Ok(());
        }
        Verb::Destroy => {
            session.volumes.remove(name);
            let result = session.pool.destroy_dataset(name);
            if result.is_err()
                && let Ok(volume) = session.pool.open_volume(name)
            {
                session.volumes.insert(name.clone(), volume);
            }
            return result;
        }
        Verb::Resize(size) => return session.pool.resize_volume(name, *size, true),
        _ => {}
    }
    let volume = &session.volumes[name];
    match &deed.verb {
        Verb::Write { offset, len, seed, way, fua } => {
            let data = pattern(*seed, *len);
            match way {
                Way::Plain => volume.write(*offset, &data, *fua)?,
                Way::Atomic => volume.write_atomic(*offset, &data, *fua)?,
                Way::Compared => {
                    let start = *offset as usize;
                    let now = models[name].contents()[start..start + len].to_vec();
                    if let Some(differs) = volume.compare_and_write(*offset, &now, &data, *fua)? {
                        let text =
                            format!("volume {name}: wrong bytes at {offset} and {differs} when they were compared");
                        return Err(Error::new(ErrorKind::Corrupt, text));
                    }
                }
            }
        }
        Verb::Overtake(offset, len, seed) => {
            volume.write(*offset, &pattern(*seed, *len), false)?;
            send_to_log(session, name)?;
            volume.write(*offset, &pattern(*seed ^ 1 << 40, *len), false)?;
        }
        Verb::Pierce { offset, len, hole, seed, crowd } => {
            for i in 0..*crowd {
                volume.write(*offset, &pattern(seed ^ (i + 1) << 40, *len), false)?;
                send_to_log(session, name)?;
            }
            volume.write_atomic(*offset, &pattern(*seed, *len), false)?;
            volume.discard(hole.0, hole.1 - hole.0)?;
        }
        Verb::Discard(offset, len) => volume.discard(*offset, *len)?,
        Verb::Flush => volume.flush()?,
        Verb::Read => {
            let (got, want) = (session.read_volume(name)?, models[name].contents());
            if got != want {
                let first = got.iter().zip(&want).position(|(a, b)| a != b);
                let text = format!("volume {name}: a read returned wrong bytes from {first:?} on");
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
        }
        Verb::Create(_) | Verb::Destroy | Verb::Resize(_) => {}
    }
    Ok(())
}

/// Puts what was written on its way to the log, without waiting for it: as a caller that is about to.
fn send_to_log(session: &Session, name: &str) -> Result<()> {
    if let Some(dataset) = session.pool.dataset(name) {
        let object = ObjectRef { id: VOLUME_OBJECT, record_size: session.volumes[name].record_bytes() };
        Store::log_object(&*dataset, object, &[])?;
    }
    Ok(())
}

/// A volume of a size that suits small pools.
pub fn spec(random: &SeededRandom) -> Spec {
    Spec {
        size_bytes: (1 + random.below(60)) * 8192,
        block_bytes: *pick(random, &[512, 4096]),
        record_bytes: *pick(random, &[4096, 16 << 10, 16 << 10, 128 << 10]),
        reserve: random.chance(1, 2),
    }
}

/// A deed that makes sense now, on a volume that is there.
pub fn deed(random: &SeededRandom, models: &Models) -> Option<Deed> {
    let names: Vec<&String> = models.keys().collect();
    if names.is_empty() {
        return None;
    }
    let volume = (*pick(random, &names)).clone();
    let size = models[&volume].size;
    let part = |most: u64| {
        let offset = match random.below(3) {
            0 => random.below(size),
            1 => random.below(size) / 4096 * 4096,
            _ => 0,
        };
        let len = 1 + random.below(most.min(size - offset));
        let aligned = len / 4096 * 4096;
        (offset, if aligned > 0 && random.chance(1, 2) { aligned } else { len })
    };
    let verb = match random.below(21) {
        0..=8 => {
            let (offset, len) = part(*pick(random, &[700, 4096, 20_000, 140_000]));
            let way = *pick(random, &[Way::Plain, Way::Plain, Way::Plain, Way::Atomic, Way::Compared]);
            let fua = random.chance(1, 3);
            Verb::Write { offset, len: len as usize, seed: random.next_u64(), way, fua }
        }
        9..=11 => {
            let (offset, len) = part(*pick(random, &[5000, 60_000, 500_000]));
            Verb::Discard(offset, len)
        }
        12..=14 => Verb::Flush,
        15 => {
            let (offset, len) = part(9000);
            Verb::Overtake(offset, len as usize, random.next_u64())
        }
        16 => Verb::Resize((1 + random.below(60)) * 8192),
        20 if size >= 12_288 => {
            let len = 12_288 + random.below(size.min(130_000) - 12_287);
            let offset = random.below(size - len + 1);
            let from = offset + random.below(len);
            let to = from + 1 + random.below(offset + len - from);
            // so many that it would lie at the end of a block of the log, which is of 1 MiB, or none
            let crowd = if random.chance(1, 4) { (1 << 20) / (len + 4096) } else { 0 };
            Verb::Pierce { offset, len: len as usize, hole: (from, to), seed: random.next_u64() >> 1, crowd }
        }
        _ => Verb::Read,
    };
    Some(Deed { volume, verb })
}

/// After an error that may have done a part: goes on with what is there, if that can be.
///
/// # Errors
/// What is wrong, in words.
pub fn look_again(session: &Session, models: &mut Models, name: &str) -> std::result::Result<(), String> {
    let found = session.read_volume(name).map_err(|e| format!("volume {name} cannot be read: {e}"))?;
    let Some(model) = models.get_mut(name) else { return Ok(()) };
    model.may_be(&found).map_err(|e| format!("volume {name}, after an error: {e}"))?;
    for number in 0..(found.len() as u64).div_ceil(BLOCK as u64) {
        let block = at(&found, number);
        if *model.newest(number) != block {
            model.blocks.entry(number).or_insert_with(|| vec![zero()]).push(Arc::new(block));
        }
    }
    model.size = found.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model::new(Spec { size_bytes: 40960, block_bytes: 512, record_bytes: 4096, reserve: false })
    }

    #[test]
    fn a_crash_leaves_durable_blocks_or_later_ones() {
        let mut m = model();
        let first = m.contents();
        m.put(100, &pattern(1, 5000), false);
        let second = m.contents();
        assert!(m.may_be(&first).is_ok() && m.may_be(&second).is_ok());
        let mixed = [&first[..4096], &second[4096..]].concat();
        assert!(m.may_be(&mixed).is_ok());
        m.settle_range(100, 10);
        assert!(m.may_be(&mixed).is_err(), "the first block is durable");
        m.put(0, &pattern(2, 4096), false);
        assert!(m.may_be(&second).is_ok());
        let wrong = vec![7; 40960];
        assert!(m.may_be(&wrong).is_err() && m.was_written(&wrong).is_err());
        assert!(m.was_written(&m.contents()).is_ok());
        assert!(m.may_be(&second[..4096]).is_err(), "the size is another");
    }

    #[test]
    fn an_atomic_write_may_go_piece_by_piece() {
        let mut m = model();
        let before = m.contents();
        m.put(0, &pattern(1, 12288), true);
        let after = m.contents();
        m.put(6000, &[0; 2192], false);
        let half = m.contents();
        m.put(3000, &[0; 3000], false);
        let end = m.contents();
        // of the block in the middle nothing is left: it looks as it did before, and says nothing of the others
        assert_eq!(&end[4096..8192], &before[4096..8192]);
        for whole in [&before, &after, &half, &end] {
            assert!(m.may_be(whole).is_ok());
        }
        for part in [&after, &half] {
            assert!(m.may_be(&[&before[..4096], &part[4096..8192], &before[8192..]].concat()).is_err());
        }
        assert!(m.may_be(&[&end[..4096], &before[4096..]].concat()).is_err());
    }

    #[test]
    fn an_atomic_write_is_not_there_in_part() {
        let mut m = model();
        let before = m.contents();
        m.put(0, &pattern(1, 8192), true);
        let after = m.contents();
        assert!(m.may_be(&before).is_ok() && m.may_be(&after).is_ok());
        assert!(m.may_be(&[&after[..4096], &before[4096..]].concat()).is_err());
        // a later write that leaves bytes of it in a block does not take them along alone
        m.put(100, &pattern(3, 10), false);
        let partly = m.contents();
        assert!(m.may_be(&partly).is_ok());
        assert!(m.may_be(&[&partly[..4096], &before[4096..]].concat()).is_err());
        // a block that looks the same before and after says nothing
        let mut same = model();
        same.put(4095, &[9], false);
        let before = same.contents();
        same.put(4095, &[[9].as_slice(), &pattern(1, 4096)].concat(), true);
        assert!(same.may_be(&before).is_ok() && same.may_be(&same.contents()).is_ok());
        // one that leaves none says nothing of the others
        m.put(0, &pattern(2, 4096), false);
        let later = m.contents();
        assert!(m.may_be(&[&later[..4096], &before[4096..]].concat()).is_ok());
        m.settle();
        assert!(m.may_be(&before).is_err());
    }
}
