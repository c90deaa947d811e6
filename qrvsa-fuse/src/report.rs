//! Runs operations so that a panic in one is an I/O error to its caller and nothing to anybody else, and tells the log of
//! I/O errors without flooding it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;
use qrvsa_core::Result;
use qrvsa_core::fs::ops::Ino;

/// At most this many lines per window; the rest is counted.
const LINES_PER_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Where failed operations are reported.
pub(crate) struct Reporter {
    /// Which mount, for the log.
    fs_name: String,
    window: Mutex<Window>,
}

struct Window {
    start: Instant,
    lines: u32,
    suppressed: u64,
}

impl Reporter {
    pub fn new(fs_name: &str) -> Reporter {
        let window = Window { start: Instant::now(), lines: 0, suppressed: 0 };
        Reporter { fs_name: fs_name.to_owned(), window: Mutex::new(window) }
    }

    /// Runs one operation. A panic becomes `EIO`; `EIO` is logged; `ENOSYS` becomes `EOPNOTSUPP`, because the kernel
    /// takes `ENOSYS` as "never ask again".
    pub fn run<T>(
        &self,
        operation: &'static str,
        ino: Ino,
        f: impl FnOnce() -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(match error.errno() {
                Errno::EIO => {
                    self.log(operation, ino, &error.to_string());
                    Errno::EIO
                }
                Errno::ENOSYS => Errno::EOPNOTSUPP,
                // Zero or negative is no error number the kernel takes.
                errno if (errno as i32) <= 0 => Errno::EIO,
                errno => errno,
            }),
            Err(payload) => {
                let text = payload
                    .downcast_ref::<&str>()
                    .copied()
                    .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                    .unwrap_or("no message");
                self.log(operation, ino, &format!("panic: {text}"));
                // The payload's own destructor may panic too.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                Err(Errno::EIO)
            }
        }
    }

    /// Logs an error that no caller will see.
    pub fn log(&self, operation: &'static str, ino: Ino, error: &str) {
        if let Some(suppressed) = self.admit(Instant::now()) {
            tracing::error!(filesystem = %self.fs_name, operation, ino, suppressed, "{error}");
        }
    }

    /// Whether another line may be written at `now`: how many were suppressed before it.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        if now.saturating_duration_since(window.start) >= WINDOW {
            window.start = now;
            window.lines = 0;
        }
        if window.lines >= LINES_PER_WINDOW {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qrvsa_core::{Error, ErrorKind};

    #[test]
    fn errors_and_panics_become_error_numbers() {
        let r = Reporter::new("t");
        assert_eq!(r.run("a", 1, || Ok(7)), Ok(7));
        assert_eq!(r.run::<()>("a", 1, || Err(Error::posix(Errno::ENOENT))), Err(Errno::ENOENT));
        assert_eq!(r.run::<()>("a", 1, || Err(Error::posix(Errno::ENOSYS))), Err(Errno::EOPNOTSUPP));
        assert_eq!(r.run::<()>("a", 1, || Err(Error::posix(Errno::UnknownErrno))), Err(Errno::EIO));
        assert_eq!(r.run::<()>("a", 1, || Err(Error::new(ErrorKind::Corrupt, "bad"))), Err(Errno::EIO));
        assert_eq!(r.run::<()>("a", 1, || panic!("{}", 1)), Err(Errno::EIO));
    }

    #[test]
    fn a_storm_of_errors_is_counted_not_written() {
        let r = Reporter::new("t");
        let t = Instant::now();
        let written = (0..100).filter(|_| r.admit(t).is_some()).count();
        assert_eq!(written, LINES_PER_WINDOW as usize);
        assert_eq!(r.admit(t + WINDOW), Some(80));
        assert_eq!(r.admit(t + WINDOW), Some(0));
    }
}
