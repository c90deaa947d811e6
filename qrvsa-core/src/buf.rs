//! Memory for direct I/O: buffers aligned to 4 KiB, whole blocks long.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

/// The unit of direct I/O, of rows and of file blocks, in bytes.
pub const BLOCK_SIZE: usize = 4096;

/// An owned buffer whose address is a multiple of [`BLOCK_SIZE`]. Its length is any number of bytes; device requests
/// need a multiple of the device's logical sector.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: AlignedBuf owns its memory exclusively, like a boxed slice.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references only read the memory.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(1), BLOCK_SIZE).expect("buffer lengths are far below isize::MAX")
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is at least one.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        AlignedBuf { ptr, len }
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> AlignedBuf {
        let layout = Self::layout(bytes.len());
        // SAFETY: the layout's size is at least one.
        let ptr = unsafe { alloc(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        // SAFETY: the new allocation holds bytes.len() bytes and overlaps nothing.
        unsafe { ptr.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        AlignedBuf { ptr, len: bytes.len() }
    }

    /// A copy of `bytes`, padded with zeros to a whole number of blocks.
    pub fn from_slice_padded(bytes: &[u8]) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(bytes.len().next_multiple_of(BLOCK_SIZE));
        buf[..bytes.len()].copy_from_slice(bytes);
        buf
    }
}

/// Bytes of buffers that a thread keeps for its next reads.
const SPARE_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static SPARE: RefCell<(usize, Vec<AlignedBuf>)> = const { RefCell::new((0, Vec::new())) };
}

impl AlignedBuf {
    /// A buffer of `len` bytes for a read, with whatever the thread has read before in it: it costs no zeroing, and its
    /// memory is in the caches.
    pub fn spare(len: usize) -> AlignedBuf {
        let found = SPARE.try_with(|spare| {
            let (bytes, bufs) = &mut *spare.borrow_mut();
            let at = bufs.iter().rposition(|buf| buf.len == len)?;
            *bytes -= len;
            Some(bufs.swap_remove(at))
        });
        found.ok().flatten().unwrap_or_else(|| AlignedBuf::zeroed(len))
    }

    /// Keeps the buffer for a later [`AlignedBuf::spare`] of this thread, if it has not too many.
    pub fn keep(self) {
        // without the thread's locals, at its end, it is dropped
        let _ = SPARE.try_with(|spare| {
            let (bytes, bufs) = &mut *spare.borrow_mut();
            if *bytes + self.len <= SPARE_BYTES_MAX {
                *bytes += self.len;
                bufs.push(self);
            }
        });
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated by this type with the same layout, freed once.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.len)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: ptr is valid for len initialised bytes (zeroed or copied into at allocation).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for deref, and the reference is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> AlignedBuf {
        AlignedBuf::from_slice(self)
    }
}

/// A part of a shared buffer: the source of a write, kept alive until the write has completed, or bytes in a cache, which stay
/// as they are as long as somebody holds them.
#[derive(Clone, Debug)]
pub struct BufSlice {
    buf: Arc<AlignedBuf>,
    range: Range<usize>,
}

impl BufSlice {
    /// A part of `buf`.
    ///
    /// # Panics
    /// If the range does not lie in the buffer.
    pub fn new(buf: Arc<AlignedBuf>, range: Range<usize>) -> BufSlice {
        assert!(range.start <= range.end && range.end <= buf.len());
        BufSlice { buf, range }
    }

    /// All of `buf`.
    pub fn whole(buf: Arc<AlignedBuf>) -> BufSlice {
        let range = 0..buf.len();
        BufSlice { buf, range }
    }

    /// A part of this part.
    ///
    /// # Panics
    /// If the range does not lie in the slice.
    pub fn slice(&self, range: Range<usize>) -> BufSlice {
        assert!(range.start <= range.end && range.end <= self.range.len());
        BufSlice { buf: self.buf.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// The bytes in a buffer that is not much larger: this one, or a new one.
    pub fn compact(&self) -> BufSlice {
        if self.len() * 4 >= self.buf.len() * 3 {
            return self.clone();
        }
        BufSlice::whole(Arc::new(AlignedBuf::from_slice(self)))
    }

    /// How much memory it keeps alive, bytes.
    pub fn held_bytes(&self) -> usize {
        self.buf.len()
    }

    /// The buffer, and where in it the part lies.
    pub fn into_parts(self) -> (Arc<AlignedBuf>, Range<usize>) {
        (self.buf, self.range)
    }
}

impl Deref for BufSlice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_some_buffers_of_the_right_length() {
        std::thread::spawn(|| {
            let mut buf = AlignedBuf::spare(8192);
            assert!(buf.iter().all(|b| *b == 0));
            buf.fill(7);
            buf.keep();
            assert_eq!(AlignedBuf::spare(4096).len(), 4096);
            let again = AlignedBuf::spare(8192);
            assert!(again.iter().all(|b| *b == 7));
            again.keep();
            (0..100).map(|_| AlignedBuf::zeroed(64 << 10)).for_each(AlignedBuf::keep);
            SPARE.with_borrow(|(bytes, bufs)| {
                assert!(*bytes <= SPARE_BYTES_MAX);
                assert_eq!(*bytes, bufs.iter().map(|b| b.len()).sum::<usize>());
            });
        })
        .join()
        .unwrap();
    }
}
