//! Ctrl-C and SIGTERM during work that has something to tidy up: the first asks it to end, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status of a program that was ended by SIGINT, as shells give it.
const INTERRUPTED: i32 = 130;

/// Whether somebody asked for the end.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on until the program ends. Where that is not possible, signals do what they always do.
    pub fn listen() -> Interrupt {
        let asked = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&asked);
        let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let kinds = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
                let [Ok(mut interrupt), Ok(mut terminate)] = kinds else { return };
                next(&mut interrupt, &mut terminate).await;
                shared.store(true, Ordering::Relaxed);
                next(&mut interrupt, &mut terminate).await;
                std::process::exit(INTERRUPTED);
            });
        });
        Interrupt(asked)
    }

    /// Whether somebody asked for the end.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The next of two signals.
async fn next(one: &mut Signal, other: &mut Signal) {
    std::future::poll_fn(|context| match (one.poll_recv(context), other.poll_recv(context)) {
        (std::task::Poll::Pending, std::task::Poll::Pending) => std::task::Poll::Pending,
        _ => std::task::Poll::Ready(()),
    })
    .await;
}
