//! One life of the daemon: lock, listen, restore, serve, shut down.
//!
//! The socket listens from the beginning, so that a second daemon is refused and early clients wait instead of failing.
//! The manager (systemd) is told that the daemon is ready when pools are imported and mounts restored.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Config;
use crate::daemon::Daemon;
use crate::engine::Engine;
use crate::http::{Peer, Shared, router};
use crate::mounter::Mounter;
use crate::server::Socket;
use crate::state::StateDir;
use crate::targets::tgt::TgtServer;

/// How long requests under way may take after the daemon is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an import under way at the daemon's end is waited for.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a daemon owns alone from its first moment on: taken before anything else is touched.
pub struct Claims {
    state: StateDir,
    socket: Socket,
}

impl Claims {
    /// Takes the state directory, then the socket.
    ///
    /// # Errors
    /// One line for people.
    pub fn take(state_dir: &Path, socket: &Path) -> Result<Claims, String> {
        Ok(Claims { state: StateDir::open(state_dir)?, socket: Socket::bind(socket)? })
    }
}

/// Runs until `stop` yields; a second one makes the end urgent. Returns when everything is unmounted and exported.
///
/// # Errors
/// One line for people: why the daemon could not start.
pub async fn run(
    claims: Claims,
    engine: Arc<dyn Engine>,
    mounter: Arc<dyn Mounter>,
    config: Config,
    mut stop: mpsc::Receiver<()>,
) -> Result<(), String> {
    let Claims { state, socket } = claims;
    let listener = socket
        .listener()
        .and_then(tokio::net::UnixListener::from_std)
        .map_err(|e| format!("cannot accept connections: {e}"))?;
    let (urgent_patience, request_patience) = (config.urgent_patience, config.request_patience);
    let daemon = Daemon::new(engine, mounter, config, state);
    let (ready_sender, ready) = watch::channel(false);
    let (drain_sender, mut drain) = watch::channel(false);
    let owner_uid = nix::unistd::geteuid().as_raw();
    let app = router(Shared { daemon: Arc::clone(&daemon), ready, owner_uid });
    let server = axum::serve(listener, app.into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(async move { drop(drain.wait_for(|drain| *drain).await) });
    let server = tokio::spawn(server.into_future());

    let restoring = Arc::clone(&daemon);
    let mut restored = tokio::task::spawn_blocking(move || restoring.restore(&|what| status(what)));
    let mut early_stop = false;
    let outcome = tokio::select! {
        outcome = &mut restored => Some(outcome),
        _ = stop.recv() => None,
    };
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => {
            early_stop = true;
            daemon.begin_stop();
            match tokio::time::timeout(RESTORE_TIMEOUT, restored).await {
                Ok(outcome) => outcome,
                Err(_) => return Err("stopped while an import was under way that does not end".to_owned()),
            }
        }
    };
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => return Err(problem),
        Err(_) => return Err("the daemon failed while it restored its pools".to_owned()),
    }
    // After the restore: a tgt client that comes early is told that nobody is there, as by a tgtd that is not up yet.
    let tgt = if early_stop { None } else { serve_tgt(&daemon) };
    if !early_stop {
        let _ = ready_sender.send(true);
        tracing::info!("ready");
        notify(&[NotifyState::Ready, NotifyState::Status("ready")]);
        let _ = stop.recv().await;
    }

    tracing::info!("stopping");
    notify(&[NotifyState::Stopping, NotifyState::Status("unmounting and exporting")]);
    daemon.begin_stop();
    if let Some(tgt) = tgt {
        end_tgt(tgt, request_patience).await;
    }
    let _ = ready_sender.send(true);
    let _ = drain_sender.send(true);
    let urgent = Arc::new(AtomicBool::new(false));
    let stopping = {
        let urgent = Arc::clone(&urgent);
        async move {
            if tokio::time::timeout(DRAIN_TIMEOUT, server).await.is_err() {
                tracing::warn!("a request does not end; going on without it");
            }
            let _ = tokio::task::spawn_blocking(move || daemon.stop(&urgent)).await;
        }
    };
    tokio::pin!(stopping);
    tokio::select! {
        () = &mut stopping => {}
        Some(()) = stop.recv() => {
            tracing::warn!("told to stop again: not waiting for busy mounts any more");
            urgent.store(true, Ordering::Relaxed);
            if tokio::time::timeout(urgent_patience, &mut stopping).await.is_err() {
                tracing::error!("pools could not be exported in time; they will be recovered at the next start");
            }
        }
    }
    drop(socket);
    tracing::info!("stopped");
    Ok(())
}

/// Listens on tgt's management socket. Without it everything else works, so a failure is logged only.
fn serve_tgt(daemon: &Arc<Daemon>) -> Option<TgtServer> {
    let base = daemon.targets().tgt_socket();
    match TgtServer::start(&base, Arc::clone(daemon.targets())) {
        Ok(server) => Some(server),
        Err(problem) => {
            tracing::error!("tgt's programs cannot manage targets: {problem}");
            None
        }
    }
}

/// Ends tgt's management socket. A request that hangs is waited for so long: it must not hold up the daemon's end.
async fn end_tgt(server: TgtServer, patience: Duration) {
    let (sender, ended) = oneshot::channel();
    let end = move || {
        drop(server);
        let _ = sender.send(());
    };
    if let Err(e) = std::thread::Builder::new().name("qrvsa-tgt-end".to_owned()).spawn(end) {
        tracing::warn!("tgt's management socket cannot be ended: {e}");
    } else if tokio::time::timeout(patience, ended).await.is_err() {
        tracing::warn!("a tgt request does not end; going on without it");
    }
}

/// SIGTERM and SIGINT as a stream. The third ends the process on the spot. SIGHUP does nothing: the daemon may have been
/// started from a terminal that goes away.
///
/// # Errors
/// The signals cannot be handled.
pub fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut count = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => continue,
            }
            count += 1;
            if count > 2 {
                std::process::exit(1);
            }
            // Full or closed: the end is under way already.
            let _ = sender.try_send(());
        }
    });
    Ok(receiver)
}

/// Tells the manager what the daemon is doing, and that it is alive.
fn status(what: &str) {
    tracing::info!("{what}");
    notify(&[NotifyState::Status(what)]);
}

fn notify(states: &[NotifyState<'_>]) {
    // Without a manager this does nothing.
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!("cannot notify the service manager: {e}");
    }
}
