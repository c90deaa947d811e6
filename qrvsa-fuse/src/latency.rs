//! Keeps idle processors from going to sleep while requests come fast.
//!
//! A request passes from the caller to a session thread and back, through the kernel or over a network. Each time the
//! processor that takes over has just gone idle, and waking it up costs more than the request: on a virtual machine, more
//! than twice as much. The kernel's
//! interface against that is `/dev/cpu_dma_latency` (Documentation/power/pm_qos_interface): who holds it open with a 0 in
//! it keeps idle processors polling. That costs power, and a processor's time of the host, so it is held only while there
//! are many requests: from [`FAST_PER_TICK`] on, and until [`CALM_TICKS_MAX`] ticks had fewer.
//!
//! One thread for the process watches the rate. It sleeps while nothing happens: the first request wakes it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// The kernel's file for it.
const DEVICE: &str = "/dev/cpu_dma_latency";
/// How often the rate is looked at.
const TICK: Duration = Duration::from_millis(20);
/// Requests in a tick that count as fast: 500 a second.
const FAST_PER_TICK: u64 = 10;
/// Ticks without that many after which processors may sleep again.
const CALM_TICKS_MAX: u32 = 10;

static WATCH: OnceLock<Watch> = OnceLock::new();

/// What requests and the watching thread share.
struct Watch {
    requests: AtomicU64,
    /// The thread is parked, and wants to be woken by a request.
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// Starts to watch the rate of all requests of this process, for good. A second call does nothing.
pub fn keep_low() {
    let watch = Watch { requests: AtomicU64::new(0), asleep: AtomicBool::new(false), thread: OnceLock::new() };
    if WATCH.set(watch).is_err() {
        return;
    }
    let started = std::thread::Builder::new().name("low-latency".into()).spawn(|| {
        if let Some(watch) = WATCH.get() {
            watch.run(&PathBuf::from(DEVICE));
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "processors may sleep between requests");
    }
}

/// Counts a request.
pub fn request() {
    let Some(watch) = WATCH.get() else { return };
    watch.requests.fetch_add(1, Ordering::Relaxed);
    if watch.asleep.load(Ordering::Relaxed) && watch.asleep.swap(false, Ordering::AcqRel) {
        watch.thread.get().inspect(|thread| thread.unpark());
    }
}

impl Watch {
    fn run(&self, device: &Path) {
        let _ = self.thread.set(std::thread::current());
        let mut rate = Rate::default();
        let mut held: Option<File> = None;
        loop {
            self.asleep.store(true, Ordering::Release);
            while self.asleep.load(Ordering::Acquire) {
                std::thread::park();
            }
            let mut seen = self.requests.load(Ordering::Relaxed);
            loop {
                std::thread::sleep(TICK);
                let now = self.requests.load(Ordering::Relaxed);
                let hold = rate.tick(now.wrapping_sub(seen));
                seen = now;
                match (hold, &held) {
                    (true, None) => match hold_low(device) {
                        Ok(file) => held = Some(file),
                        Err(error) => {
                            tracing::info!(%error, "{} cannot be held: processors may sleep between requests", device.display());
                            // never woken again: `asleep` stays false
                            return;
                        }
                    },
                    (true, Some(_)) => {}
                    (false, _) => {
                        held = None;
                        break;
                    }
                }
            }
        }
    }
}

/// Opens the file and asks for no latency at all; the request holds until the file is closed.
fn hold_low(device: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.write_all(&0i32.to_ne_bytes())?;
    Ok(file)
}

/// When requests are fast.
#[derive(Default)]
struct Rate {
    fast: bool,
    calm_ticks: u32,
}

impl Rate {
    /// Takes the number of requests of one tick; whether requests are fast now.
    fn tick(&mut self, requests: u64) -> bool {
        if requests >= FAST_PER_TICK {
            (self.fast, self.calm_ticks) = (true, 0);
        } else {
            self.calm_ticks += 1;
            if self.calm_ticks >= CALM_TICKS_MAX {
                (self.fast, self.calm_ticks) = (false, 0);
            }
        }
        self.fast
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_while_requests_are_fast_and_a_moment_longer() {
        let mut rate = Rate::default();
        assert!(!rate.tick(1));
        assert!(rate.tick(FAST_PER_TICK));
        for _ in 0..CALM_TICKS_MAX - 1 {
            assert!(rate.tick(FAST_PER_TICK - 1), "a short pause changes nothing");
        }
        assert!(!rate.tick(0));
        assert!(!rate.tick(0));
        assert!(rate.tick(1000));
    }

    #[test]
    fn asks_for_no_latency_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        assert!(hold_low(&path).is_err());
        std::fs::write(&path, "").unwrap();
        drop(hold_low(&path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), [0; 4]);
    }
}
