//! The erasure code: k data columns, m parity columns, any k of the k + m give all of them back.
//!
//! # The bytes
//!
//! Part of the disk format, and the same on every processor:
//!
//! * k = 1: parity columns are copies of the data column.
//! * otherwise: parity column i is recovery shard i of the crate `reed-solomon-simd` at its **high rate**, for shards
//!   that are a multiple of 64 bytes long. Positions are coded in groups of 64 bytes independently of each other, so
//!   that columns may be coded in pieces of any such length, in any order, with the same result.
//!
//! The crate defines the bytes and is the oracle of the tests; the work is done by matrix products, see
//! [`gf16`](super::gf16) for why and how.
//!
//! # Columns
//!
//! Columns are numbered from 0: data 0 to k - 1, parity k to k + m - 1.
//!
//! # Caches
//!
//! Codecs are kept for the life of the process ([`Codec::get`]). The matrices of loss patterns are kept in one cache of
//! at most [`PATTERN_CACHE_BYTES`] for all codecs: a degraded pool asks for the same few patterns all the time.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::RwLock;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::gf16::kernel::{Kernel, Matrix};
use super::gf16::{self, GROUP_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;

/// Most columns of a geometry, data and parity.
pub const COLUMNS_MAX: usize = 255;
/// Lengths of columns are multiples of this many bytes.
pub const COLUMN_UNIT_BYTES: usize = GROUP_BYTES;
/// Most memory that matrices of loss patterns take, in bytes.
pub const PATTERN_CACHE_BYTES: u64 = 8 << 20;

/// The erasure code of one geometry. Cheap to share; all methods work from many threads at once.
#[derive(Debug)]
pub struct Codec {
    k: u8,
    m: u8,
    kernel: Kernel,
    /// The m x k generator; empty where no parity is computed (k = 1 or m = 0).
    generator: Vec<u16>,
    /// The generator made ready for the kernel, on first use.
    encoder: OnceLock<Matrix>,
}

impl Codec {
    /// The code of a geometry, with the best kernel for this processor.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless k >= 1 and k + m <= 255.
    pub fn new(k: u8, m: u8) -> Result<Codec> {
        Codec::with_kernel(k, m, Kernel::best())
    }

    /// The code of a geometry, computed by a certain kernel. All kernels give the same bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless k >= 1 and k + m <= 255, [`ErrorKind::Unsupported`] if this processor does not run
    /// the kernel.
    pub fn with_kernel(k: u8, m: u8, kernel: Kernel) -> Result<Codec> {
        if k == 0 || usize::from(k) + usize::from(m) > COLUMNS_MAX {
            fail!(Invalid, "a geometry of {k}+{m} is not possible: at least one data and at most 255 columns in all");
        }
        if !kernel.is_available() {
            fail!(Unsupported, "this processor has no instructions for the {kernel:?} codec kernel");
        }
        let computed = k > 1 && m > 0;
        let generator = if computed { gf16::generator(usize::from(k), usize::from(m)) } else { Vec::new() };
        Ok(Codec { k, m, kernel, generator, encoder: OnceLock::new() })
    }

    /// The code of a geometry from the cache of the process, made on first use.
    ///
    /// # Panics
    /// If the geometry is impossible: k = 0 or k + m > 255. Geometries from outside are checked where they are read.
    pub fn get(k: u8, m: u8) -> Arc<Codec> {
        type Codecs = HashMap<(u8, u8), Arc<Codec>>;
        static CODECS: LazyLock<RwLock<Codecs>> = LazyLock::new(Default::default);
        if let Some(codec) = CODECS.read().get(&(k, m)) {
            return codec.clone();
        }
        let codec = Codec::new(k, m).expect("geometries are checked where they enter");
        CODECS.write().entry((k, m)).or_insert_with(|| Arc::new(codec)).clone()
    }

    /// Data columns.
    pub fn data_columns(&self) -> usize {
        usize::from(self.k)
    }

    /// Parity columns.
    pub fn parity_columns(&self) -> usize {
        usize::from(self.m)
    }

    /// All columns.
    pub fn columns(&self) -> usize {
        self.data_columns() + self.parity_columns()
    }

    /// Computes all parity columns. Slices may have any alignment; lengths are in bytes.
    ///
    /// # Panics
    /// If there are not k data and m parity slices, or their lengths are not all the same multiple of
    /// [`COLUMN_UNIT_BYTES`].
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert_eq!((data.len(), parity.len()), (self.data_columns(), self.parity_columns()), "slices of the geometry");
        let len = data[0].len();
        assert!(len.is_multiple_of(COLUMN_UNIT_BYTES), "columns are whole units of 64 bytes");
        assert!(data.iter().all(|c| c.len() == len) && parity.iter().all(|c| c.len() == len), "columns of one length");
        if self.k == 1 {
            for copy in parity {
                copy.copy_from_slice(data[0]);
            }
        } else if self.m > 0 {
            self.encoder.get_or_init(|| self.matrix(&self.generator)).apply(data, parity);
        }
    }

    /// Rebuilds the columns `want` from any k of the columns `present`: data and parity alike, both as (column, bytes).
    /// Slices may have any alignment. A wanted column that is also present is copied.
    ///
    /// Nothing is verified: the caller vouches for the bytes of the present columns, and checks what comes out. On an
    /// error the wanted slices are left as they were.
    ///
    /// # Errors
    /// [`ErrorKind::Degraded`] if fewer than k columns are present. [`ErrorKind::Invalid`] for a column number beyond
    /// the geometry, for a column named twice in `present` or twice in `want`, and for lengths that are not all the same
    /// multiple of [`COLUMN_UNIT_BYTES`].
    pub fn reconstruct(&self, present: &[(u8, &[u8])], want: &mut [(u8, &mut [u8])]) -> Result<()> {
        let mut columns: [Option<&[u8]>; COLUMNS_MAX] = [None; COLUMNS_MAX];
        let len = present.first().map_or(0, |(_, bytes)| bytes.len());
        for (column, bytes) in present {
            self.check_column(*column, bytes.len(), len)?;
            if columns[usize::from(*column)].replace(bytes).is_some() {
                fail!(Invalid, "column {column} is present twice");
            }
        }
        if present.len() < self.data_columns() {
            fail!(Degraded, "{} of {} columns needed to rebuild are present", present.len(), self.k);
        }
        let mut wanted = ColumnSet::default();
        for (column, bytes) in want.iter() {
            self.check_column(*column, bytes.len(), len)?;
            if !wanted.insert(*column) {
                fail!(Invalid, "column {column} is wanted twice");
            }
        }

        // From here on nothing fails. In column order, so that a loss pattern has one matrix however it is asked for.
        let mut lost: Vec<(u8, &mut [u8])> = Vec::with_capacity(want.len());
        for (column, bytes) in want.iter_mut() {
            // with one data column, any column is a copy of any other
            let source = columns[usize::from(*column)].or(if self.k == 1 { Some(present[0].1) } else { None });
            match source {
                Some(source) => bytes.copy_from_slice(source),
                None => lost.push((*column, bytes)),
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        lost.sort_unstable_by_key(|(column, _)| *column);
        let (mut pattern, mut sources) = (Pattern::default(), Vec::with_capacity(self.data_columns()));
        // data columns come first: what is not lost need not be computed
        for (column, bytes) in
            (0..=u8::MAX).zip(&columns).filter_map(|(c, bytes)| Some((c, (*bytes)?))).take(self.k.into())
        {
            pattern.survivors.insert(column);
            sources.push(bytes);
        }
        for (column, _) in &lost {
            pattern.wanted.insert(*column);
        }
        let mut outputs: Vec<&mut [u8]> = lost.into_iter().map(|(_, bytes)| bytes).collect();
        self.rebuilder(pattern).apply(&sources, &mut outputs);
        Ok(())
    }

    fn check_column(&self, column: u8, bytes: usize, expected: usize) -> Result<()> {
        if usize::from(column) >= self.columns() {
            fail!(Invalid, "there is no column {column} in a geometry of {}+{}", self.k, self.m);
        }
        if bytes != expected || !bytes.is_multiple_of(COLUMN_UNIT_BYTES) {
            return Err(Error::new(ErrorKind::Invalid, "columns are not of one length in whole units of 64 bytes"));
        }
        Ok(())
    }

    /// The matrix of a loss pattern, from the cache or computed.
    fn rebuilder(&self, pattern: Pattern) -> Arc<Matrix> {
        static CACHE: LazyLock<Cache<PatternKey, Arc<Matrix>, MatrixBytes>> = LazyLock::new(|| {
            // few shards, so that the largest matrix (some 2 MiB) fits one
            let options = OptionsBuilder::new()
                .shards(2)
                .estimated_items_capacity(1024)
                .weight_capacity(PATTERN_CACHE_BYTES)
                .build()
                .expect("all that the builder needs is set");
            Cache::with_options(options, MatrixBytes, DefaultHashBuilder::default(), DefaultLifecycle::default())
        });
        let key = PatternKey { k: self.k, m: self.m, kernel: self.kernel, pattern };
        if let Some(matrix) = CACHE.get(&key) {
            return matrix;
        }
        let (survivors, wanted) = (pattern.survivors.to_vec(), pattern.wanted.to_vec());
        let rows = gf16::rebuild_rows(self.data_columns(), &self.generator, &survivors, &wanted);
        let matrix = Arc::new(self.matrix(&rows));
        CACHE.insert(key, matrix.clone());
        matrix
    }

    fn matrix(&self, factors: &[u16]) -> Matrix {
        Matrix::new(self.kernel, self.data_columns(), factors)
            .expect("the kernel was available when the codec was made")
    }
}

/// A set of columns, as a bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
struct ColumnSet([u64; 4]);

impl ColumnSet {
    /// Adds a column; false if it was there.
    fn insert(&mut self, column: u8) -> bool {
        let word = &mut self.0[usize::from(column / 64)];
        let bit = 1 << (column % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// The columns, ascending.
    fn to_vec(self) -> Vec<u8> {
        (0..=u8::MAX).filter(|column| self.0[usize::from(column / 64)] >> (column % 64) & 1 != 0).collect()
    }
}

/// What is read and what is rebuilt from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Pattern {
    survivors: ColumnSet,
    wanted: ColumnSet,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PatternKey {
    k: u8,
    m: u8,
    kernel: Kernel,
    pattern: Pattern,
}

#[derive(Clone)]
struct MatrixBytes;

impl Weighter<PatternKey, Arc<Matrix>> for MatrixBytes {
    fn weight(&self, _: &PatternKey, matrix: &Arc<Matrix>) -> u64 {
        (matrix.memory_bytes() + size_of::<Matrix>() + size_of::<PatternKey>()) as u64
    }
}

#[cfg(test)]
mod tests;
