//! What every device checks and says about a request, so that the simulator refuses exactly what a disk would.

use super::{IoError, Request};
use crate::buf::BLOCK_SIZE;

impl Request {
    /// Bytes the request reads, writes or discards; 0 for a flush. `None` if they exceed `u64`.
    pub(crate) fn len_bytes(&self) -> Option<u64> {
        let add = |sum: u64, len: usize| sum.checked_add(len as u64);
        match self {
            Request::Read { bufs, .. } => bufs.iter().try_fold(0, |sum, b| add(sum, b.len())),
            Request::Write { slices, .. } => slices.iter().try_fold(0, |sum, s| add(sum, s.len())),
            Request::Flush => Some(0),
            Request::Discard { len, .. } => Some(*len),
        }
    }

    /// First byte; 0 for a flush.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Request::Read { offset, .. } | Request::Write { offset, .. } | Request::Discard { offset, .. } => *offset,
            Request::Flush => 0,
        }
    }

    /// Whether the request may change the medium.
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Request::Write { .. } | Request::Discard { .. })
    }

    /// What the request does, for an error.
    pub(crate) fn describe(&self, device: &dyn std::fmt::Display) -> String {
        let (offset, len) = (self.offset(), self.len_bytes().unwrap_or(u64::MAX));
        match self {
            Request::Read { .. } => format!("read of {len} bytes at {offset} from {device}"),
            Request::Write { durable: true, .. } => format!("durable write of {len} bytes at {offset} to {device}"),
            Request::Write { .. } => format!("write of {len} bytes at {offset} to {device}"),
            Request::Flush => format!("flush of {device}"),
            Request::Discard { .. } => format!("discard of {len} bytes at {offset} on {device}"),
        }
    }

    /// Checks alignment (offset, lengths and addresses are multiples of 4 KiB) and bounds, and returns the length.
    pub(crate) fn check(&self, size_bytes: u64, device: &dyn std::fmt::Display) -> Result<u64, IoError> {
        let whole =
            |len: usize, ptr: *const u8| len.is_multiple_of(BLOCK_SIZE) && ptr.addr().is_multiple_of(BLOCK_SIZE);
        let aligned = self.offset().is_multiple_of(BLOCK_SIZE as u64)
            && match self {
                Request::Read { bufs, .. } => bufs.iter().all(|b| whole(b.len(), b.as_ptr())),
                Request::Write { slices, .. } => slices.iter().all(|s| whole(s.len(), s.as_ptr())),
                Request::Flush => true,
                Request::Discard { len, .. } => len.is_multiple_of(BLOCK_SIZE as u64),
            };
        let refuse = |why: &str| {
            Err(IoError { errno: libc::EINVAL, what: format!("{} refused ({why})", self.describe(device)) })
        };
        if !aligned {
            return refuse("not aligned to 4 KiB");
        }
        match self.len_bytes() {
            Some(len) if self.offset().checked_add(len).is_some_and(|end| end <= size_bytes) => Ok(len),
            _ => refuse("beyond the end of the device"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{AlignedBuf, BufSlice};
    use std::sync::Arc;

    fn read(offset: u64, len: usize) -> Request {
        Request::Read { offset, bufs: vec![AlignedBuf::zeroed(len)] }
    }

    #[test]
    fn bounds_and_alignment() {
        let size = 1 << 20;
        assert_eq!(read(0, 8192).check(size, &"d"), Ok(8192));
        assert_eq!(read(size - 4096, 4096).check(size, &"d"), Ok(4096));
        assert_eq!(Request::Flush.check(size, &"d"), Ok(0));
        let odd = Arc::new(AlignedBuf::zeroed(8192));
        let odd = Request::Write { offset: 0, slices: vec![BufSlice::new(odd, 512..4608)], durable: false };
        let refused = [
            read(512, 4096),
            read(0, 100),
            read(size, 4096),
            read(size - 4096, 8192),
            read(u64::MAX - 4095, 4096),
            Request::Discard { offset: 0, len: 2 * size },
            Request::Discard { offset: 4096, len: u64::MAX - 4095 },
            Request::Discard { offset: 0, len: 100 },
            odd,
        ];
        for request in refused {
            assert_eq!(request.check(size, &"d").unwrap_err().errno, libc::EINVAL, "{request:?}");
        }
    }
}
