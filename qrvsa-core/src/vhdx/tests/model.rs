//! Random work on an image and on a vector; chains of images, all ways to end, resizing.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 5 * MIB + 512 * 16;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        len: u64,
        fill: u8,
    },
    Trim {
        at: u64,
        len: u64,
    },
    Flush,
    /// Closed and opened again.
    Reopen,
    /// Flushed, then killed.
    Kill,
    /// A child on top.
    Child,
    Resize {
        size: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // In units of 4 KiB; lengths up to a block and a bit, whole blocks now and then.
    let run = (0u64..1400, prop_oneof![4 => 1u64..30, 1 => 200u64..300]);
    let blocks = (0u64..5, 1u64..3).prop_map(|(b, n)| (b * 256, n * 256));
    let run = prop_oneof![4 => run, 1 => blocks];
    let step = prop_oneof![
        8 => (run.clone(), 1u8..255).prop_map(|((at, len), fill)| Step::Write { at, len, fill }),
        3 => run.prop_map(|(at, len)| Step::Trim { at, len }),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        1 => Just(Step::Child),
        1 => (1u64..1800).prop_map(|size| Step::Resize { size }),
    ];
    proptest::collection::vec(step, 1..40)
}

struct Rig {
    files: Vec<Arc<SimFile>>,
    image: Option<Arc<Image>>,
    unit: u64,
}

impl Rig {
    fn image(&self) -> &Arc<Image> {
        self.image.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.image = Some(load_chain(&self.files, true).unwrap());
        assert_clean(self.image());
    }
}

fn run(steps: Vec<Step>, fixed: bool, sector: u32, block_size: u32) {
    let options = CreateOptions { fixed, block_size, logical_sector: sector, ..options(SIZE) };
    let (file, image) = fresh(&options);
    let mut rig = Rig { files: vec![file], image: Some(image), unit: 4096 };
    let mut model = vec![0u8; SIZE as usize];
    for step in steps {
        let range = |at: u64, len: u64, model: &[u8]| {
            let start = (at * rig.unit).min(model.len() as u64 / u64::from(sector) * u64::from(sector));
            start as usize..(start + len * rig.unit).min(model.len() as u64) as usize
        };
        match step {
            Step::Write { at, len, fill } => {
                let range = range(at, len, &model);
                let bytes: Vec<u8> = (0..range.len()).map(|i| fill ^ (i / 512) as u8).collect();
                rig.image().write(range.start as u64, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
            Step::Trim { at, len } => {
                let range = range(at, len, &model);
                rig.image().trim(range.start as u64, range.len() as u64).unwrap();
                model[range].fill(0);
            }
            Step::Flush => rig.image().flush().unwrap(),
            Step::Reopen => {
                rig.image().close().unwrap();
                rig.image = None;
                let last = rig.files.last().unwrap();
                assert!(header_of(last).log_guid.is_nil());
                rig.reopen();
            }
            Step::Kill => {
                rig.image().flush().unwrap();
                kill(rig.image.take().unwrap());
                let contents = rig.files.pop().unwrap().contents();
                rig.files.push(SimFile::with(contents));
                rig.reopen();
            }
            Step::Child if rig.files.len() < 4 => {
                rig.image().close().unwrap();
                let child = child_of(rig.image(), block_size);
                rig.files.push(child);
                rig.image = None;
                rig.reopen();
            }
            Step::Child => {}
            Step::Resize { size } => {
                let size = size * rig.unit;
                let tail = model.get(size as usize..).unwrap_or(&[]);
                let loses = tail.iter().any(|b| *b != 0);
                let refused = rig.image().resize(size, false);
                assert_eq!(refused.is_err(), loses, "{refused:?}");
                if loses {
                    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NeedsForce);
                    rig.image().resize(size, true).unwrap();
                }
                model.resize(size as usize, 0);
                assert_eq!(rig.image().size(), size);
            }
        }
    }
    for round in 0..2 {
        let seen = read(rig.image(), 0, model.len());
        if seen != model {
            let differs = seen.iter().zip(&model).position(|(a, b)| a != b);
            panic!("first difference at {differs:?}, round {round}");
        }
        rig.image().close().unwrap();
        rig.image = None;
        rig.reopen();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn dynamic(steps in steps(), big in any::<bool>()) {
        run(steps, false, if big { 4096 } else { 512 }, 1 << 20);
    }

    #[test]
    fn larger_blocks(steps in steps()) {
        run(steps, false, 512, 2 << 20);
    }

    #[test]
    fn fixed(steps in steps()) {
        run(steps, true, 512, 1 << 20);
    }
}
