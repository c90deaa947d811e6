//! The socket: who owns it, and how it comes and goes.
//!
//! A socket file outlives a daemon that was killed. Whether somebody serves it is found out by connecting: refused means
//! stale, and it is replaced. Two daemons that start at once are kept apart by a lock on a file beside the socket, held
//! from before the test until the end.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket. Dropping it removes the file, if it is still its own.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    inode: (u64, u64),
    listener: UnixListener,
    /// Held for its lock.
    _lock: File,
}

impl Socket {
    /// Listens at a path: mode 0600, in a directory that is made if missing.
    ///
    /// # Errors
    /// One line for people: another daemon serves it, something else is there, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Socket, String> {
        let at = path.display();
        let cannot = |e: io::Error| format!("cannot listen on {at}: {e}");
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .map_err(|e| format!("cannot make the directory {} of the socket: {e}", dir.display()))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let taken = || format!("another qrvsad serves {at}: stop it, or name another socket with --socket");
        let lock = crate::host::lock_file(Path::new(&lock_path))?.ok_or_else(taken)?;
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(cannot(e)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(format!("cannot listen on {at}: a file that is not a socket is there; remove it"));
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(taken()),
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    tracing::info!("removing the stale socket {at}");
                    std::fs::remove_file(path).map_err(cannot)?;
                }
                Err(e) => return Err(cannot(e)),
            },
        }
        let listener = UnixListener::bind(path).map_err(cannot)?;
        // The process's umask (see `main`) keeps others out until this is done.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let metadata = std::fs::symlink_metadata(path).map_err(cannot)?;
        Ok(Socket { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()), listener, _lock: lock })
    }

    /// A handle to accept connections with.
    ///
    /// # Errors
    /// No file descriptors left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode);
        if ours && let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove the socket {}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/s");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(Socket::bind(&path).unwrap_err().contains("another qrvsad"));
        drop(socket);
        assert!(!path.exists());
        drop(Socket::bind(&path).unwrap());
    }

    #[test]
    fn replaces_a_stale_socket_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        drop(Socket::bind(&path).unwrap());
        // Served by somebody without our lock.
        let other = UnixListener::bind(&path).unwrap();
        assert!(Socket::bind(&path).unwrap_err().contains("another qrvsad"));
        drop(other);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"precious").unwrap();
        assert!(Socket::bind(&path).unwrap_err().contains("not a socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn leaves_a_successors_socket_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Socket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"other").unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
