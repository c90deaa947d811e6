//! A blocking client of the daemon.
//!
//! One connection per request: requests are rare and the socket is local, so nothing is gained by keeping connections,
//! and nothing can go stale while a job is polled for hours across restarts of the daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::error::{ApiError, ErrorKind};
use crate::names::FsName;
use crate::routes;
use crate::target::*;
use crate::types::*;

/// Largest answer accepted, bytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A client of the daemon on one socket.
pub struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
    connect_timeout: Duration,
}

impl Client {
    /// A client for the daemon on `socket`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Internal` when the system has no resources for it.
    pub fn new(socket: impl Into<PathBuf>) -> Result<Client, ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| ApiError::new(ErrorKind::Internal, format!("cannot set up a connection: {e}")))?;
        Ok(Client { socket: socket.into(), runtime, connect_timeout: Duration::from_secs(10) })
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/daemon`.
    ///
    /// # Errors
    /// `Unreachable`, `Forbidden`; the same goes for every method here.
    pub fn daemon(&self) -> Result<DaemonInfo, ApiError> {
        self.get(routes::DAEMON)
    }

    /// All pools.
    ///
    /// # Errors
    /// As the daemon answers.
    pub fn pools(&self) -> Result<Vec<PoolSummary>, ApiError> {
        self.get(routes::POOLS)
    }

    /// One pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn pool(&self, name: &str) -> Result<PoolStatus, ApiError> {
        self.get(&routes::pool(name))
    }

    /// Makes a pool.
    ///
    /// # Errors
    /// `NeedsForce` when the devices hold something.
    pub fn create_pool(&self, request: &CreatePool) -> Result<PoolStatus, ApiError> {
        self.post(routes::POOLS, request)
    }

    /// Destroys a pool and all data in it.
    ///
    /// # Errors
    /// `NeedsForce` without `force`.
    pub fn destroy_pool(&self, name: &str, force: bool) -> Result<(), ApiError> {
        self.delete(&format!("{}?force={force}", routes::pool(name)))
    }

    /// Imports pools.
    ///
    /// # Errors
    /// `NotFound` when the named pool is nowhere.
    pub fn import(&self, request: &ImportPools) -> Result<ImportResult, ApiError> {
        self.post(routes::IMPORT, request)
    }

    /// Exports a pool; with `force` also while its mounts are in use.
    ///
    /// # Errors
    /// `Busy`.
    pub fn export_pool(&self, name: &str, force: bool) -> Result<(), ApiError> {
        self.post_empty(&format!("{}?force={force}", routes::pool_part(name, "export")))
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// `Io`, `Suspended`.
    pub fn sync_pool(&self, name: &str) -> Result<(), ApiError> {
        self.post_empty(&routes::pool_part(name, "sync"))
    }

    /// Takes a device out of service.
    ///
    /// # Errors
    /// `Degraded` when data would become unreachable.
    pub fn offline(&self, name: &str, device: &str) -> Result<PoolStatus, ApiError> {
        self.post(&routes::pool_part(name, "offline"), &DeviceRef { device: device.to_owned() })
    }

    /// Brings a device back.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` when it is another device.
    pub fn online(&self, name: &str, device: &str) -> Result<PoolStatus, ApiError> {
        self.post(&routes::pool_part(name, "online"), &DeviceRef { device: device.to_owned() })
    }

    /// Replaces a device.
    ///
    /// # Errors
    /// `NeedsForce` when the new device holds something.
    pub fn replace(&self, name: &str, request: &ReplaceDevice) -> Result<JobInfo, ApiError> {
        self.post(&routes::pool_part(name, "replace"), request)
    }

    /// Starts, pauses or stops a scrub.
    ///
    /// # Errors
    /// `NotFound` when there is none to pause or stop.
    pub fn scrub(&self, name: &str, action: ScrubAction) -> Result<JobInfo, ApiError> {
        self.post(&routes::pool_part(name, "scrub"), &ScrubRequest { action })
    }

    /// Starts a check, or joins the one that runs.
    ///
    /// # Errors
    /// `Busy` when one of the other depth runs.
    pub fn check(&self, name: &str, deep: bool) -> Result<JobInfo, ApiError> {
        self.post(&routes::pool_part(name, "check"), &CheckRequest { deep })
    }

    /// Filesystems of a pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn filesystems(&self, pool: &str) -> Result<Vec<FsInfo>, ApiError> {
        self.get(&routes::pool_part(pool, "filesystems"))
    }

    /// Makes a filesystem.
    ///
    /// # Errors
    /// `Exists`.
    pub fn create_fs(&self, pool: &str, request: &CreateFs) -> Result<FsInfo, ApiError> {
        self.post(&routes::pool_part(pool, "filesystems"), request)
    }

    /// Destroys a filesystem and all data in it.
    ///
    /// # Errors
    /// `NeedsForce` without `force`, `Busy` while mounted.
    pub fn destroy_fs(&self, name: &FsName, force: bool) -> Result<(), ApiError> {
        self.delete(&format!("{}?force={force}", routes::filesystem(name)))
    }

    /// Properties of a filesystem.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn properties(&self, name: &FsName) -> Result<Vec<Property>, ApiError> {
        self.get(&routes::properties(name))
    }

    /// Sets a property.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn set_property(&self, name: &FsName, request: &SetProperty) -> Result<Vec<Property>, ApiError> {
        self.call(Method::PATCH, &routes::properties(name), Some(request))
    }

    /// Where a file lies.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn fragments(&self, name: &FsName, ino: u64) -> Result<Vec<Fragment>, ApiError> {
        self.get(&routes::fragments(name, ino))
    }

    /// Volumes of a pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volumes(&self, pool: &str) -> Result<Vec<VolumeInfo>, ApiError> {
        self.get(&routes::pool_part(pool, "volumes"))
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &FsName) -> Result<VolumeInfo, ApiError> {
        self.get(&routes::volume(name))
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NoSpace`.
    pub fn create_volume(&self, pool: &str, request: &CreateVolume) -> Result<VolumeInfo, ApiError> {
        self.post(&routes::pool_part(pool, "volumes"), request)
    }

    /// Changes the size of a volume.
    ///
    /// # Errors
    /// `NeedsForce` to make it smaller without `force`, `NoSpace`, `Invalid`.
    pub fn resize_volume(&self, name: &FsName, request: &ResizeVolume) -> Result<VolumeInfo, ApiError> {
        self.post(&routes::volume_part(name, "resize"), request)
    }

    /// Destroys a volume and all data in it.
    ///
    /// # Errors
    /// `NeedsForce` without `force`, `Busy` while it is in use.
    pub fn destroy_volume(&self, name: &FsName, force: bool) -> Result<(), ApiError> {
        self.delete(&format!("{}?force={force}", routes::volume(name)))
    }

    /// Where the contents of a volume lie.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume_fragments(&self, name: &FsName) -> Result<Vec<Fragment>, ApiError> {
        self.get(&routes::volume_part(name, "fragments"))
    }

    /// All jobs of this run of the daemon.
    ///
    /// # Errors
    /// As the daemon answers.
    pub fn jobs(&self) -> Result<Vec<JobInfo>, ApiError> {
        self.get(routes::JOBS)
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn job(&self, id: &str) -> Result<JobInfo, ApiError> {
        self.get(&routes::job(id))
    }

    /// All mounts.
    ///
    /// # Errors
    /// As the daemon answers.
    pub fn mounts(&self) -> Result<Vec<MountInfo>, ApiError> {
        self.get(routes::MOUNTS)
    }

    /// Mounts a filesystem; returns when it serves.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Busy`.
    pub fn mount(&self, request: &MountRequest) -> Result<MountInfo, ApiError> {
        self.post(routes::MOUNTS, request)
    }

    /// Gives a mount that serves other options, now and after a restart of the daemon.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for an option that does not exist, or that only a new mount can have; `Busy` to make it read-only
    /// while files are open for writing.
    pub fn update_mount(&self, id: u64, change: &UpdateMount) -> Result<MountInfo, ApiError> {
        self.call(Method::PATCH, &routes::mount(id), Some(change))
    }

    /// Unmounts; `lazy` also while it is in use.
    ///
    /// # Errors
    /// `NotFound`, `Busy`.
    pub fn unmount(&self, id: u64, lazy: bool) -> Result<(), ApiError> {
        self.delete(&format!("{}?lazy={lazy}", routes::mount(id)))
    }

    /// All targets.
    ///
    /// # Errors
    /// As the daemon answers.
    pub fn targets(&self) -> Result<Vec<TargetInfo>, ApiError> {
        self.get(routes::TARGETS)
    }

    /// One target.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn target(&self, iqn: &str) -> Result<TargetInfo, ApiError> {
        self.get(&routes::target(iqn))
    }

    /// Makes a target.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `Busy` when a portal cannot be had.
    pub fn create_target(&self, request: &CreateTarget) -> Result<TargetInfo, ApiError> {
        self.post(routes::TARGETS, request)
    }

    /// Changes a target.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn update_target(&self, iqn: &str, request: &UpdateTarget) -> Result<TargetInfo, ApiError> {
        self.call(Method::PATCH, &routes::target(iqn), Some(request))
    }

    /// Removes a target; its storage stays as it is.
    ///
    /// # Errors
    /// `NotFound`, `Busy` with sessions and without `force`.
    pub fn destroy_target(&self, iqn: &str, force: bool) -> Result<(), ApiError> {
        self.delete(&format!("{}?force={force}", routes::target(iqn)))
    }

    /// Adds a logical unit.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub fn add_lun(&self, iqn: &str, request: &AddLun) -> Result<LunInfo, ApiError> {
        self.post(&routes::target_part(iqn, "luns"), request)
    }

    /// Removes a logical unit; its storage stays as it is.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove_lun(&self, iqn: &str, lun: u64) -> Result<(), ApiError> {
        self.delete(&routes::target_part(iqn, &format!("luns/{lun}")))
    }

    /// Lets somebody in, or no more.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub fn change_acl(&self, iqn: &str, add: bool, rule: &AclRule) -> Result<TargetInfo, ApiError> {
        self.post(&routes::target_part(iqn, if add { "acl/add" } else { "acl/remove" }), rule)
    }

    /// Adds or removes a user.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub fn change_user(&self, iqn: &str, add: bool, user: &UserRequest) -> Result<TargetInfo, ApiError> {
        self.post(&routes::target_part(iqn, if add { "users/add" } else { "users/remove" }), user)
    }

    /// The sessions of a target.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn sessions(&self, iqn: &str) -> Result<Vec<SessionInfo>, ApiError> {
        self.get(&routes::target_part(iqn, "sessions"))
    }

    /// Ends a session.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn drop_session(&self, iqn: &str, sid: u64) -> Result<(), ApiError> {
        self.delete(&routes::target_part(iqn, &format!("sessions/{sid}")))
    }

    /// Where tgt's programs reach the daemon.
    ///
    /// # Errors
    /// As the daemon answers.
    pub fn tgt_socket(&self) -> Result<TgtSocket, ApiError> {
        self.get(routes::TGT_SOCKET)
    }

    /// Labels of a device.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn labels(&self, device: &str) -> Result<Vec<DebugEntry>, ApiError> {
        self.post(routes::DEBUG_LABELS, &DeviceRef { device: device.to_owned() })
    }

    /// Uberblocks of a device.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn uberblocks(&self, device: &str) -> Result<Vec<DebugEntry>, ApiError> {
        self.post(routes::DEBUG_UBERBLOCKS, &DeviceRef { device: device.to_owned() })
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, None::<&()>)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.call(Method::POST, path, Some(body))
    }

    fn post_empty(&self, path: &str) -> Result<(), ApiError> {
        self.send(Method::POST, path, Bytes::new()).map(|_| ())
    }

    fn delete(&self, path: &str) -> Result<(), ApiError> {
        self.send(Method::DELETE, path, Bytes::new()).map(|_| ())
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ApiError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body)
                .map_err(|e| ApiError::invalid(format!("the request cannot be sent as JSON: {e}")))?,
            None => Vec::new(),
        };
        Client::decode(path, &self.send(method, path, Bytes::from(body))?)
    }

    pub(crate) fn decode<T: DeserializeOwned>(path: &str, answer: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(answer).map_err(|e| {
            ApiError::new(ErrorKind::Internal, format!("the daemon's answer to {path} makes no sense: {e}"))
                .with_hint("check that `qrvsa` and `qrvsad` have the same version")
        })
    }

    /// Drives what is asynchronous here.
    pub(crate) fn wait_for<F: Future>(&self, what: F) -> F::Output {
        self.runtime.block_on(what)
    }

    /// Sends one request; returns the body of an answer with a success status.
    pub(crate) fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ApiError> {
        self.wait_for(self.exchange(method, path, "application/json", Full::new(body)))
    }

    /// As [`Client::send`], with a body of any kind.
    pub(crate) async fn exchange<B>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: B,
    ) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
    {
        let stream = match tokio::time::timeout(self.connect_timeout, UnixStream::connect(&self.socket)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        }
        .map_err(|e| self.unreachable(&e))?;
        let lost = |e: &dyn std::error::Error| {
            ApiError::new(ErrorKind::Unreachable, format!("the daemon closed the connection: {e}"))
                .with_hint("see its log (`journalctl -u qrvsad`), and repeat the command if it is safe to")
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(&e))?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "qrvsad")
            .header(CONTENT_TYPE, content_type)
            .body(body)
            .map_err(|e| ApiError::invalid(format!("the request to {path} is not valid: {e}")))?;
        let answer = sender.send_request(request).await.map_err(|e| lost(&e))?;
        let status = answer.status();
        let body =
            Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| lost(&*e))?.to_bytes();
        drop(sender);
        driver.abort();
        if status.is_success() {
            return Ok(body);
        }
        Err(serde_json::from_slice(&body)
            .unwrap_or_else(|_| ApiError::new(ErrorKind::Internal, format!("the daemon answered {status} to {path}"))))
    }

    fn unreachable(&self, error: &io::Error) -> ApiError {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                ApiError::new(ErrorKind::Forbidden, format!("no permission to use the daemon at {socket}"))
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                let hint = if self.socket == Path::new(crate::DEFAULT_SOCKET) {
                    "start it with `systemctl start qrvsad`".to_owned()
                } else {
                    format!("start it with `qrvsad --socket {socket}`, or name the right socket")
                };
                ApiError::new(ErrorKind::Unreachable, format!("the daemon is not running at {socket}")).with_hint(hint)
            }
            _ => ApiError::new(ErrorKind::Unreachable, format!("cannot reach the daemon at {socket}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// Answers one connection with fixed bytes, after reading the request's head.
    fn answering(answer: &'static [u8]) -> (tempfile::TempDir, Client) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).unwrap();
            stream.write_all(answer).unwrap();
        });
        let client = Client::new(path).unwrap();
        (dir, client)
    }

    #[test]
    fn nobody_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let error = Client::new(&socket).unwrap().pools().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        assert!(error.hint.contains("qrvsad --socket"), "{error}");
        drop(UnixListener::bind(&socket).unwrap());
        assert_eq!(Client::new(&socket).unwrap().pools().unwrap_err().kind, ErrorKind::Unreachable);
        let error = Client::new("/nonexistent/s").unwrap().unreachable(&io::ErrorKind::PermissionDenied.into());
        assert_eq!(error.kind, ErrorKind::Forbidden);
    }

    #[test]
    fn answers_that_make_no_sense() {
        for (answer, kind) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}["[..], ErrorKind::Internal),
            (b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\nno", ErrorKind::Internal),
            (b"SSH-2.0-OpenSSH\r\n", ErrorKind::Unreachable),
            (b"", ErrorKind::Unreachable),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n[", ErrorKind::Unreachable),
        ] {
            let (_dir, client) = answering(answer);
            assert_eq!(client.pools().unwrap_err().kind, kind, "{:?}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn the_daemons_own_errors_arrive() {
        let (_dir, client) = answering(
            b"HTTP/1.1 409 Conflict\r\ncontent-length: 48\r\n\r\n{\"kind\":\"busy\",\"message\":\"in use\",\"hint\":\"wait\"}",
        );
        let error = client.pools().unwrap_err();
        assert_eq!((error.kind, error.hint.as_str()), (ErrorKind::Busy, "wait"));
    }
}
