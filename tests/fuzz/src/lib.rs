//! Fuzz targets for everything that reads foreign bytes, and a runner for the stable toolchain.
//!
//! A [`Target`] takes bytes and hands them to parsers of the project. It fails by a panic: the parser's own, or that of an
//! assertion on what it returned (an encoder gives back what the decoder took, a range lies where it must). The runner adds
//! bounds on the memory and the time that one input may take.
//!
//! Where a checksum guards a structure, random changes would never get past it. There a target reads the bytes twice: as
//! they are, and sealed again with the right checksum; VHDX images are built whole from a list of edits.
//!
//! - [`targets`]: what is fuzzed, and the inputs that each begins with, made by the project's own encoders
//! - [`corpus`]: the committed inputs, and the crashers that were found once
//! - [`mutate`]: how inputs are changed; everything follows from a seed
//! - [`run`]: the loop, what counts as a failure, and how one is kept

pub mod corpus;
pub mod mutate;
pub mod run;
pub mod targets;

/// It counts what each thread allocates, which bounds the memory of an input.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Something to be fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// What it covers, in a few words.
    pub covers: &'static str,
    /// Takes an input; whether a parser accepted it. A panic is a failure.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to begin with, from real encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of its language, for the mutator.
    pub words: &'static [&'static [u8]],
    /// Longest input in bytes.
    pub bytes_max: usize,
    /// Memory that one input may have allocated in all, in bytes.
    pub memory_max: u64,
}
