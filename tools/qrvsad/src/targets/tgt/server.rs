//! The management socket: one thread, one request per connection, for the daemon's own user only.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use qrvsa_tgt::wire::{Code, REQUEST_BYTES, Request, encode_reply};

use super::super::Targets;

/// How long a client may take to send its request or to take its answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// The socket, served until it is dropped.
pub struct TgtServer {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    _lock: File,
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

impl TgtServer {
    /// Listens on `base` with tgt's control port 0 behind it.
    ///
    /// # Errors
    /// One line for people.
    pub fn start(base: &Path, targets: Arc<Targets>) -> Result<TgtServer, String> {
        let path = with(base, ".0");
        let cannot = |e: std::io::Error| format!("cannot listen on {}: {e}", path.display());
        let lock = crate::host::lock_file(&with(&path, ".lock"))?
            .ok_or_else(|| format!("{} is served by another program, such as tgtd", path.display()))?;
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(&path).map_err(cannot)?,
            Ok(_) => return Err(format!("{} is not a socket; remove it", path.display())),
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path).map_err(cannot)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(cannot)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopping);
        let thread = std::thread::Builder::new()
            .name("qrvsa-tgt".to_owned())
            .spawn(move || serve(listener, &targets, &seen))
            .map_err(cannot)?;
        Ok(TgtServer { path, stopping, thread: Some(thread), _lock: lock })
    }
}

impl Drop for TgtServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(listener: UnixListener, targets: &Arc<Targets>, stopping: &AtomicBool) {
    let mut listener = Some(listener);
    while let Some(stream) = listener.as_ref().map(UnixListener::accept) {
        if stopping.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok((stream, _)) => {
                // A request is handled here, one after the other, as tgtd does it; a client that dawdles is given up.
                let targets = Arc::clone(targets);
                // Before the answer leaves: who has it finds nobody here any more, which is what tgtadm waits for.
                let close = || {
                    listener = None;
                    tracing::info!("tgt's management socket closed on request; it comes back with the daemon");
                };
                let handled =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handle(stream, &targets, close)));
                match handled {
                    Ok(Ok(())) => {}
                    Ok(Err(problem)) => tracing::info!("tgt's management socket: {problem}"),
                    Err(_) => tracing::error!("a tgt request failed"),
                }
            }
            Err(e) => {
                tracing::warn!("tgt's management socket: {e}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Answers one client. `close` closes the socket to others.
fn handle(mut stream: UnixStream, targets: &Targets, close: impl FnOnce()) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    let peer = getsockopt(&stream, PeerCredentials).map_err(|e| e.to_string())?;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if (peer.uid(), peer.gid()) != (uid, gid) {
        return Err(format!("user {} group {} may not use it", peer.uid(), peer.gid()));
    }
    stream.set_read_timeout(Some(CLIENT_PATIENCE)).map_err(text)?;
    stream.set_write_timeout(Some(CLIENT_PATIENCE)).map_err(text)?;
    let mut head = [0; REQUEST_BYTES];
    stream.read_exact(&mut head).map_err(text)?;
    let (request, length) = Request::decode(&head)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).map_err(text)?;
    let answer = targets.handle_tgt(&request, &payload);
    if answer.stop && answer.code == Code::Success {
        close();
    }
    stream.write_all(&encode_reply(answer.code, &answer.text)).map_err(text)
}
