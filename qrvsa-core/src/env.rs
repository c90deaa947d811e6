//! Clock and randomness as parameters, so that a whole pool can run deterministically from one seed.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time. Wall time goes into inodes and labels, monotonic time into deadlines and rates.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the epoch, as in `CLOCK_REALTIME`.
    fn wall_ns(&self) -> i64;
    /// Nanoseconds since an arbitrary start that never go back.
    fn monotonic_ns(&self) -> u64;
    /// Waits. The simulator only moves its time forward.
    fn sleep(&self, duration: Duration);
}

/// A source of random numbers, for identifiers and hash seeds (not for keys).
pub trait Random: Send + Sync {
    /// The next 64 random bits.
    fn next_u64(&self) -> u64;
}

/// What the engine takes from the world besides devices.
#[derive(Clone)]
pub struct Environment {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}

impl Environment {
    /// The machine's own clock and kernel randomness.
    pub fn system() -> Environment {
        Environment { clock: Arc::new(SystemClock { start: Instant::now() }), random: Arc::new(KernelRandom) }
    }

    /// 128 random bits.
    pub fn random_u128(&self) -> u128 {
        (u128::from(self.random.next_u64()) << 64) | u128::from(self.random.next_u64())
    }
}

struct SystemClock {
    start: Instant,
}

impl Clock for SystemClock {
    fn wall_ns(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
            Err(e) => -i64::try_from(e.duration().as_nanos()).unwrap_or(i64::MAX),
        }
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

struct KernelRandom;

impl Random for KernelRandom {
    fn next_u64(&self) -> u64 {
        use std::io::Read;
        let mut bytes = [0u8; 8];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(&mut bytes))
            .expect("/dev/urandom is readable on every Linux system this program starts on");
        u64::from_le_bytes(bytes)
    }
}
