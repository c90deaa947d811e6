//! Power failures at every step, with every kind of loss: the image opens, is clean, and holds every flushed byte; what was
//! not flushed is old or new, sector by sector.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const UNIT: usize = 4096;

/// What each unit may hold: by offset, the fill that was flushed, and those written since.
#[derive(Clone, Default)]
struct Expected {
    flushed: BTreeMap<u64, u8>,
    since: BTreeMap<u64, BTreeSet<u8>>,
}

impl Expected {
    fn put(&mut self, offset: u64, len: usize, fill: u8) {
        for at in (offset..offset + len as u64).step_by(UNIT) {
            // Every fill written since the flush may be what survives, and the last is what a flush makes sure of.
            self.since.entry(at).or_default().insert(fill);
        }
    }

    fn accepts(&self, at: u64, sector: u8) -> bool {
        self.flushed.get(&at).copied().unwrap_or(0) == sector
            || self.since.get(&at).is_some_and(|fills| fills.contains(&sector))
    }
}

struct World<'a> {
    image: &'a Image,
    expected: &'a mut Expected,
    last: &'a mut BTreeMap<u64, u8>,
    sizes: &'a mut BTreeSet<u64>,
}

impl World<'_> {
    fn write(&mut self, offset: u64, len: usize, fill: u8) -> Result<()> {
        self.expected.put(offset, len, fill);
        self.image.write(offset, &vec![fill; len])?;
        self.note(offset, len, fill);
        Ok(())
    }

    fn trim(&mut self, offset: u64, len: usize) -> Result<()> {
        self.expected.put(offset, len, 0);
        self.image.trim(offset, len as u64)?;
        self.note(offset, len, 0);
        Ok(())
    }

    fn note(&mut self, offset: u64, len: usize, fill: u8) {
        for at in (offset..offset + len as u64).step_by(UNIT) {
            self.last.insert(at, fill);
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.image.flush()?;
        self.expected.flushed.extend(self.last.iter());
        self.expected.since.clear();
        Ok(())
    }

    fn resize(&mut self, size: u64) -> Result<()> {
        self.sizes.insert(size);
        let lost: Vec<u64> = self.last.range(size..).map(|(at, _)| *at).collect();
        for at in lost {
            self.expected.put(at, UNIT, 0);
            self.last.insert(at, 0);
        }
        self.image.resize(size, true)?;
        self.sizes.clear();
        self.sizes.insert(size);
        self.flush()
    }
}

type Scenario = fn(&mut World<'_>) -> Result<()>;

/// Runs a scenario to its end to count its steps, then once for every step at which the power can fail.
fn explore(prepare: impl Fn() -> (Vec<Arc<SimFile>>, Expected), scenario: Scenario) {
    let attempt = |cut: Option<u64>| {
        let (mut files, mut expected) = prepare();
        let base = files.pop().unwrap();
        let file = SimFile::with(base.contents());
        files.push(file.clone());
        let image = load_chain(&files, true).unwrap();
        let mut sizes = BTreeSet::from([image.size()]);
        if let Some(steps) = cut {
            file.cut_after(steps);
        }
        let mut last = expected.flushed.clone();
        let done = {
            let mut world = World { image: &image, expected: &mut expected, last: &mut last, sizes: &mut sizes };
            scenario(&mut world).and_then(|()| world.image.close())
        };
        if cut.is_none() {
            done.unwrap();
        }
        let steps = file.steps();
        kill(image);
        files.pop();
        (files, file, expected, sizes, steps)
    };
    let (.., total) = attempt(None);
    assert!(total > 10);
    let mut replayed = 0;
    for cut in 0..=total {
        let (parents, file, expected, sizes, _) = attempt(Some(cut));
        let ways = [Survives::Nothing, Survives::Everything, Survives::Some(cut), Survives::Some(cut + 1000)];
        for survives in ways {
            let what = format!("cut after {cut} of {total}, {survives:?}");
            let crashed = SimFile::with(file.crashed(survives));
            super::tools::assert_checked(&crashed, &what);
            let mut files = parents.clone();
            files.push(crashed.clone());
            // For reading first: nothing is changed by that.
            let reading = load_chain(&files, false).unwrap_or_else(|e| panic!("{what}: {e}"));
            check(&reading, &expected, &sizes, &what);
            drop(reading);
            replayed += u64::from(!header_of(&crashed).log_guid.is_nil());
            let image = load_chain(&files, true).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_clean(&image);
            check(&image, &expected, &sizes, &what);
            image.write(0, &[0x77; UNIT]).unwrap();
            image.close().unwrap();
            drop(image);
            let image = load_chain(&files, false).unwrap();
            assert_eq!(read(&image, 0, UNIT), [0x77; UNIT], "{what}");
            assert_clean(&image);
        }
    }
    assert!(replayed > 10, "logs were replayed");
}

fn check(image: &Image, expected: &Expected, sizes: &BTreeSet<u64>, what: &str) {
    assert!(sizes.contains(&image.size()), "{what}: {} bytes", image.size());
    let units: BTreeSet<u64> = expected.flushed.keys().chain(expected.since.keys()).copied().collect();
    for at in units.into_iter().filter(|at| at + (UNIT as u64) <= image.size()) {
        for (i, sector) in read(image, at, UNIT).chunks(512).enumerate() {
            assert!(sector.iter().all(|b| *b == sector[0]), "{what}: a torn sector at {at}");
            assert!(expected.accepts(at, sector[0]), "{what}: {} in sector {i} at {at}", sector[0]);
        }
    }
}

fn one(options: &CreateOptions) -> (Vec<Arc<SimFile>>, Expected) {
    let (file, image) = fresh(options);
    image.write(0, &[1; UNIT]).unwrap();
    image.write(MIB, &[2; 2 * UNIT]).unwrap();
    image.close().unwrap();
    let mut expected = Expected::default();
    for (at, fill) in [(0, 1), (MIB, 2), (MIB + UNIT as u64, 2), (2 * MIB, 0), (7 * MIB, 0)] {
        expected.flushed.insert(at, fill);
    }
    (vec![file], expected)
}

fn allocate_and_trim(world: &mut World<'_>) -> Result<()> {
    world.write(2 * MIB, UNIT, 10)?;
    world.write(3 * MIB - UNIT as u64, 2 * UNIT, 11)?;
    world.flush()?;
    world.write(2 * MIB, UNIT, 12)?;
    world.trim(MIB, 1 << 20)?;
    world.write(4 * MIB, UNIT, 13)?;
    world.flush()?;
    // The space of the block trimmed before is used again; nothing of it may show.
    world.write(5 * MIB, UNIT, 14)?;
    world.write(MIB + 8 * UNIT as u64, UNIT, 15)?;
    world.trim(2 * MIB, UNIT)?;
    world.flush()?;
    world.trim(0, 3 << 20)?;
    world.flush()?;
    world.write(6 * MIB, UNIT, 16)?;
    world.write(0, UNIT, 17)
}

#[test]
fn allocating_and_trimming() {
    explore(|| one(&options(8 * MIB)), allocate_and_trim);
}

#[test]
fn allocating_and_trimming_over_a_parent() {
    let prepare = || {
        let (mut files, expected) = one(&options(8 * MIB));
        let parent = load(&files[0], false).unwrap();
        files.push(child_of(&parent, 1 << 20));
        (files, expected)
    };
    explore(prepare, allocate_and_trim);
}

#[test]
fn resizing() {
    explore(
        || one(&options(8 * MIB)),
        |world| {
            world.write(7 * MIB, UNIT, 20)?;
            world.resize(20 * MIB)?;
            world.write(19 * MIB, UNIT, 21)?;
            world.flush()?;
            world.resize(3 * MIB + 512 * 8)?;
            world.write(3 * MIB, UNIT, 22)?;
            world.resize(8 * MIB)
        },
    );
}

#[test]
fn moving_the_table() {
    // 131072 entries fill the first mebibyte of the table; the larger disk needs another.
    explore(
        || one(&options(100 << 30)),
        |world| {
            world.write(99 << 30, UNIT, 30)?;
            world.resize(200 << 30)?;
            world.write(199 << 30, UNIT, 31)?;
            world.write(5 * MIB, UNIT, 32)?;
            world.flush()?;
            world.write(150 << 30, UNIT, 33)
        },
    );
}

#[test]
fn a_header_after_the_one_that_opens_the_log() {
    // The first commit names the log and changes the file only; then the disk is changed, which takes another header.
    let prepare = || {
        let (mut files, expected) = one(&options(8 * MIB));
        let parent = load(&files[0], false).unwrap();
        files.push(child_of(&parent, 1 << 20));
        (files, expected)
    };
    explore(prepare, |world| {
        let locator = world.image.metadata().locator.expect("the image has a parent");
        world.image.set_locator(locator.with_linkage2(None))?;
        assert!(!world.image.header().log_guid.is_nil());
        world.write(3 * MIB, UNIT, 40)?;
        world.flush()?;
        world.write(4 * MIB, UNIT, 41)?;
        world.flush()
    });
}

#[test]
fn a_killed_process_and_then_a_power_failure() {
    // What the process has written is seen, but was not flushed: the next one must not build on it.
    let killed = || {
        let (mut files, _) = one(&options(8 * MIB));
        let file = SimFile::with(files.pop().unwrap().contents());
        let image = load(&file, true).unwrap();
        image.write(2 * MIB, &[50; UNIT]).unwrap();
        image.flush().unwrap();
        image.write(3 * MIB, &[51; UNIT]).unwrap();
        kill(image);
        file
    };
    let steps = {
        let file = killed();
        let before = file.steps();
        load(&file, true).unwrap();
        file.steps() - before
    };
    assert!(steps > 4);
    for cut in 0..=steps {
        for seed in 0..8 {
            let file = killed();
            file.cut_after(cut);
            if let Ok(image) = load(&file, true) {
                kill(image);
            }
            let what = format!("cut after {cut}, seed {seed}");
            let crashed = SimFile::with(file.crashed(Survives::Some(seed)));
            super::tools::assert_checked(&crashed, &what);
            let image = load(&crashed, true).unwrap_or_else(|e| panic!("{what}: {e}"));
            for (at, fill) in [(0, 1), (MIB, 2), (2 * MIB, 50)] {
                assert_eq!(read(&image, at, UNIT), [fill; UNIT], "{what}, at {at}");
            }
            assert_clean(&image);
        }
    }
}
