//! Pages of the table and of sector bitmaps in memory: loaded when they are needed, kept while they are changed, and let go
//! when there are many.
//!
//! A page is let go only when its contents stand in the file. Who changes one pins it first; the pin goes when the change was
//! made in the file. Loading, pinning and letting go happen under one lock, so nobody changes a page that others no longer
//! see.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::file::{ImageFile, io_error};
use super::format::log::{Change, SECTOR};
use crate::error::Result;

/// Words of a page.
pub const WORDS: usize = SECTOR / 8;
/// Pages of the table that are kept, unless changed: 64 MiB.
const TABLE_PAGES_MAX: usize = 16 << 10;
/// Pages of bitmaps that are kept, unless changed: 32 MiB.
const BITMAP_PAGES_MAX: usize = 8 << 10;

/// 4 KiB of the file that are read and written as words.
pub struct Page {
    words: [AtomicU64; WORDS],
    /// Changes that are not in the file yet.
    pins: AtomicU32,
}

impl Page {
    fn load(file: &dyn ImageFile, offset: u64) -> Result<Arc<Page>> {
        let mut bytes = [0; SECTOR];
        file.read_at(&mut bytes, offset).map_err(|e| io_error(file.path(), "cannot read the structures of", e))?;
        let (words, _) = bytes.as_chunks::<8>();
        let words = std::array::from_fn(|i| AtomicU64::new(words.get(i).map_or(0, |w| u64::from_le_bytes(*w))));
        Ok(Arc::new(Page { words, pins: AtomicU32::new(0) }))
    }

    /// The word at `index` of the page.
    pub fn get(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Acquire)
    }

    /// Replaces a word. The page is pinned.
    pub fn set(&self, index: usize, word: u64) {
        self.words[index].store(word, Ordering::Release);
    }

    /// Sets the bits of `mask` to those of `value`. The page is pinned, and nobody else changes it.
    pub fn set_bits(&self, index: usize, mask: u64, value: u64) {
        let word = self.get(index);
        self.set(index, word & !mask | value & mask);
    }

    /// The page as a change of the file.
    pub fn change(&self, offset: u64) -> Change {
        let mut sector = Box::new([0; SECTOR]);
        let (to, _) = sector.as_chunks_mut::<8>();
        for (to, word) in to.iter_mut().zip(&self.words) {
            *to = word.load(Ordering::Acquire).to_le_bytes();
        }
        Change::Data { offset, sector }
    }

    /// Takes a pin away.
    pub fn unpin(&self) {
        self.pins.fetch_sub(1, Ordering::AcqRel);
    }

    fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }
}

/// Where the pages of a table are found.
enum Slots {
    /// The table is so short that none is ever let go: to look one up changes nothing that other processors see.
    Kept(Vec<OnceLock<Arc<Page>>>),
    Passing(Vec<ArcSwapOption<Page>>),
}

impl Slots {
    fn new(count: usize) -> Slots {
        if count <= TABLE_PAGES_MAX {
            Slots::Kept((0..count).map(|_| OnceLock::new()).collect())
        } else {
            Slots::Passing((0..count).map(|_| ArcSwapOption::empty()).collect())
        }
    }

    /// The word at `word` of a page, if the page is in memory.
    fn word(&self, page: usize, word: usize) -> Option<u64> {
        match self {
            Slots::Kept(pages) => pages[page].get().map(|found| found.get(word)),
            Slots::Passing(pages) => pages[page].load().as_ref().map(|found| found.get(word)),
        }
    }

    fn has(&self, page: usize) -> bool {
        match self {
            Slots::Kept(pages) => pages.get(page).is_some_and(|slot| slot.get().is_some()),
            Slots::Passing(pages) => pages.get(page).is_some_and(|slot| slot.load().is_some()),
        }
    }

    fn page(&self, page: usize) -> Option<Arc<Page>> {
        match self {
            Slots::Kept(pages) => pages.get(page)?.get().cloned(),
            Slots::Passing(pages) => pages.get(page)?.load_full(),
        }
    }

    /// Puts a page into its place, which is empty.
    fn put(&self, page: usize, found: Arc<Page>) {
        match self {
            Slots::Kept(pages) => drop(pages[page].set(found)),
            Slots::Passing(pages) => pages[page].store(Some(found)),
        }
    }
}

/// The pages of the table.
pub struct TablePages {
    /// File offset of the table.
    pub offset: u64,
    slots: Slots,
    /// Pages in memory that may be let go, oldest first; locked by whoever loads or pins one.
    loaded: Mutex<VecDeque<usize>>,
}

impl TablePages {
    /// A table of `entries` entries at `offset`, nothing loaded.
    pub fn new(offset: u64, entries: u64) -> TablePages {
        let count = entries.div_ceil(WORDS as u64) as usize;
        TablePages { offset, slots: Slots::new(count), loaded: Mutex::new(VecDeque::new()) }
    }

    /// Whether the page is in memory.
    pub fn is_loaded(&self, page: usize) -> bool {
        self.slots.has(page)
    }

    /// File offset of a page.
    pub fn page_offset(&self, page: usize) -> u64 {
        self.offset + (page * SECTOR) as u64
    }

    fn get_locked(&self, file: &dyn ImageFile, page: usize, loaded: &mut VecDeque<usize>) -> Result<Arc<Page>> {
        if let Some(found) = self.slots.page(page) {
            return Ok(found);
        }
        let fresh = Page::load(file, self.page_offset(page))?;
        self.slots.put(page, fresh.clone());
        let Slots::Passing(pages) = &self.slots else { return Ok(fresh) };
        loaded.push_back(page);
        let mut tries = 8;
        while loaded.len() > TABLE_PAGES_MAX && tries > 0 {
            tries -= 1;
            let Some(oldest) = loaded.pop_front() else { break };
            let pinned = pages[oldest].load().as_ref().is_some_and(|p| p.is_pinned());
            if pinned || oldest == page {
                loaded.push_back(oldest);
            } else {
                pages[oldest].store(None);
            }
        }
        Ok(fresh)
    }

    /// The word at `index` of the table.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io); so for all methods that load.
    ///
    /// # Panics
    /// If the table is shorter.
    pub fn word(&self, file: &dyn ImageFile, index: u64) -> Result<u64> {
        let (page, word) = split(index);
        if let Some(found) = self.slots.word(page, word) {
            return Ok(found);
        }
        Ok(self.get_locked(file, page, &mut self.loaded.lock())?.get(word))
    }

    /// The page of the word at `index`, pinned, and the word's index in it.
    #[allow(clippy::missing_errors_doc, reason = "see word")]
    pub fn pin(&self, file: &dyn ImageFile, index: u64) -> Result<(Arc<Page>, usize)> {
        let (page, word) = split(index);
        let mut loaded = self.loaded.lock();
        let found = self.get_locked(file, page, &mut loaded)?;
        found.pins.fetch_add(1, Ordering::AcqRel);
        Ok((found, word))
    }
}

fn split(index: u64) -> (usize, usize) {
    // Tables have at most 2^27 entries.
    ((index / WORDS as u64) as usize, (index % WORDS as u64) as usize)
}

/// Pages of sector bitmaps, by file offset.
#[derive(Default)]
pub struct BitmapPages {
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    pages: HashMap<u64, Arc<Page>>,
    /// Oldest first.
    order: VecDeque<u64>,
}

impl BitmapPages {
    /// Forgets pages of a run of the file that is about to hold something else. None of them is dirty.
    pub fn forget(&self, offset: u64, length: u64) {
        let mut loaded = self.loaded.lock();
        let gone = |at: &u64| (offset..offset + length).contains(at);
        loaded.pages.retain(|at, _| !gone(at));
        loaded.order.retain(|at| !gone(at));
    }

    /// The page at a file offset; pinned, if wanted.
    #[allow(clippy::missing_errors_doc, reason = "see word")]
    pub fn page(&self, file: &dyn ImageFile, offset: u64, pin: bool) -> Result<Arc<Page>> {
        let mut loaded = self.loaded.lock();
        let Loaded { pages, order } = &mut *loaded;
        let page = match pages.get(&offset) {
            Some(page) => page.clone(),
            None => {
                let page = Page::load(file, offset)?;
                pages.insert(offset, page.clone());
                order.push_back(offset);
                page
            }
        };
        if pin {
            page.pins.fetch_add(1, Ordering::AcqRel);
        }
        let mut tries = 8;
        while order.len() > BITMAP_PAGES_MAX && tries > 0 {
            tries -= 1;
            let Some(oldest) = order.pop_front() else { break };
            if pages.get(&oldest).is_some_and(|p| p.is_pinned()) {
                order.push_back(oldest);
            } else {
                pages.remove(&oldest);
            }
        }
        Ok(page)
    }
}
