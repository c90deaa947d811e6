//! Clock and randomness as parameters, so that a whole pool can run deterministically from one seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Random numbers from a seed (SplitMix64): the same seed gives the same sequence on every machine. For the simulator and
/// tests. Shared by several threads, each number is still handed out once, but to whom depends on their order.
#[derive(Debug)]
pub struct SeededRandom {
    state: AtomicU64,
}

impl SeededRandom {
    /// The sequence of this seed.
    pub const fn new(seed: u64) -> SeededRandom {
        SeededRandom { state: AtomicU64::new(seed) }
    }

    /// A number below `bound` (0 if `bound` is 0), with a bias below 2^-32 for bounds below 2^32.
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True `numerator` times in `denominator`.
    pub fn chance(&self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A clock that only moves when it is told to.
#[derive(Debug)]
pub struct SimClock {
    wall_start_ns: i64,
    elapsed_ns: AtomicU64,
}

impl SimClock {
    /// A clock whose wall time starts at `wall_start_ns` (nanoseconds since the epoch) and whose monotonic time starts at 0.
    pub const fn new(wall_start_ns: i64) -> SimClock {
        SimClock { wall_start_ns, elapsed_ns: AtomicU64::new(0) }
    }

    /// Moves the time forward.
    pub fn advance(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let add = |elapsed: u64| Some(elapsed.saturating_add(ns));
        let _ = self.elapsed_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

impl Default for SimClock {
    /// Starts on 2001-09-09, at second 1,000,000,000.
    fn default() -> SimClock {
        SimClock::new(1_000_000_000_000_000_000)
    }
}

impl Clock for SimClock {
    fn wall_ns(&self) -> i64 {
        self.wall_start_ns.saturating_add_unsigned(self.monotonic_ns())
    }

    fn monotonic_ns(&self) -> u64 {
        self.elapsed_ns.load(Ordering::Relaxed)
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

impl Environment {
    /// A deterministic world: the clock given, and random numbers from a seed.
    pub fn simulated(clock: Arc<SimClock>, seed: u64) -> Environment {
        Environment { clock, random: Arc::new(SeededRandom::new(seed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_numbers_are_the_published_sequence() {
        // Reference values of SplitMix64 for seed 1234567.
        let random = SeededRandom::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(std::array::from_fn(|_| random.next_u64()), expected);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert_eq!((random.below(0), random.below(1)), (0, 0));
        let hits = (0..10_000).filter(|_| random.chance(1, 4)).count();
        assert!((2200..2800).contains(&hits), "{hits}");
    }

    #[test]
    fn simulated_time_moves_only_when_told() {
        let clock = Arc::new(SimClock::default());
        let world = Environment::simulated(clock.clone(), 1);
        assert_eq!((world.clock.monotonic_ns(), world.clock.wall_ns()), (0, 1_000_000_000_000_000_000));
        world.clock.sleep(Duration::from_nanos(5));
        clock.advance(Duration::from_secs(1));
        assert_eq!((world.clock.monotonic_ns(), world.clock.wall_ns()), (1_000_000_005, 1_000_000_001_000_000_005));
        clock.advance(Duration::MAX);
        assert_eq!((clock.monotonic_ns(), clock.wall_ns()), (u64::MAX, i64::MAX));
        assert_eq!(world.random_u128(), Environment::simulated(clock, 1).random_u128());
    }
}
