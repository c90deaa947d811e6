//! The system calls of the file backing that the standard library has not.

use std::ffi::c_int;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

fn offset(at: u64) -> Result<libc::off_t> {
    libc::off_t::try_from(at).map_err(|_| Error::from_raw_os_error(libc::EFBIG))
}

fn done(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// Reads what is in the page cache; `EAGAIN` when a device would have to be asked.
pub(super) fn read_cached(file: &File, at: u64, buf: &mut [u8]) -> Result<usize> {
    let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let at = offset(at)?;
    // SAFETY: the descriptor is open, `iov` describes `buf`, which is borrowed for writing until the call is over.
    done(unsafe { libc::preadv2(file.as_raw_fd(), &raw const iov, 1, at, libc::RWF_NOWAIT) })
}

/// Writes; what it wrote is on stable storage at the return.
pub(super) fn write_durable(file: &File, at: u64, data: &[u8]) -> Result<usize> {
    let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let at = offset(at)?;
    // SAFETY: the descriptor is open, `iov` describes `data`, which the kernel only reads.
    done(unsafe { libc::pwritev2(file.as_raw_fd(), &raw const iov, 1, at, libc::RWF_DSYNC) })
}

/// `fallocate(2)`.
pub(super) fn fallocate(file: &File, mode: c_int, at: u64, bytes: u64) -> Result<()> {
    let (at, bytes) = (offset(at)?, offset(bytes)?);
    // SAFETY: no memory is passed.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, at, bytes) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// `lseek(2)` to data or to a hole; `None`: there is none from there on.
pub(super) fn seek(file: &File, at: u64, whence: c_int) -> Result<Option<u64>> {
    let at = offset(at)?;
    // SAFETY: no memory is passed; nothing else uses the file's position.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Bytes that an ordinary user can still write to the filesystem of the file.
pub(super) fn available_bytes(file: &File) -> u64 {
    // SAFETY: all-zero bytes are a valid `statvfs`, which is plain numbers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, `stat` is borrowed for writing until the call is over.
    match unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut stat) } {
        0 => stat.f_bavail.saturating_mul(stat.f_frsize),
        _ => 0,
    }
}
