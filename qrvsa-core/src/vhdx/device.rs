//! An image as a member of a pool.
//!
//! What lies in one run of the file is translated and goes to the file's own device, which reads and writes it with io_uring
//! and direct I/O; the block's pass travels with the request, so that its place is nobody else's before the answer, however
//! late. What may wait (a flush with allocations to commit, a durable write to a block whose place is not durable, a discard,
//! a request over blocks that do not follow each other) is done by one thread per device, many at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::create::{CreateOptions, create};
use super::file::{HostFile, ImageFile};
use super::format::{PayloadState, SIGNATURE};
use super::gate::OwnedPass;
use super::image::{Image, Piece, Shape};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::device::batch::Completions;
use crate::device::{
    Device, DeviceInfo, Guard, HostSpace, IoBatch, IoError, OpenOptions, Outcome, Request, UringDevice, open_growing,
};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// Allocations become durable after that long, flush or not.
const COMMIT_AFTER: Duration = Duration::from_secs(5);
/// How long the thread waits for the file itself.
const FILE_DEADLINE: Duration = Duration::from_secs(30);
/// Requests the thread does together.
const TOGETHER: usize = 64;

/// A request for the thread.
struct Task {
    tag: u64,
    request: Request,
    completions: Arc<Completions>,
}

/// Everything but the thread.
struct Inner {
    image: Arc<Image>,
    file: Arc<HostFile>,
    io: Arc<UringDevice>,
    /// The same, as batches want it.
    io_device: Arc<dyn Device>,
    info: DeviceInfo,
}

/// A VHDX file, opened by [`open_device`].
pub struct VhdxDevice {
    inner: Arc<Inner>,
    /// Gone while the device is dropped.
    tasks: Option<Sender<Task>>,
    worker: Option<JoinHandle<()>>,
}

/// Whether there is a VHDX file at `path`.
pub fn is_vhdx(path: &Path) -> bool {
    use std::io::Read;
    let regular = std::fs::metadata(path).is_ok_and(|m| m.is_file());
    let mut magic = [0; SIGNATURE.len()];
    regular && std::fs::File::open(path).is_ok_and(|mut f| f.read_exact(&mut magic).is_ok()) && magic == *SIGNATURE
}

/// Opens a VHDX file as a device; with a size, a dynamic one of that size is made if there is nothing. What exists must have
/// this size.
///
/// # Errors
/// As for [`crate::device::open`], and as for [`Image::open`].
pub fn open_device(path: &Path, options: OpenOptions) -> Result<Arc<dyn Device>> {
    let size = options.create_size.map(|size| size - size % BLOCK_SIZE as u64);
    let mut created = false;
    if let Some(size) = size.filter(|_| !options.read_only && !path.exists()) {
        create(path, &CreateOptions::dynamic(size))?;
        created = true;
    }
    let opened = open_existing(path, options, size);
    if opened.is_err() && created {
        // Nobody has seen the file.
        let _ = std::fs::remove_file(path);
    }
    opened.map(|device| Arc::new(device) as Arc<dyn Device>)
}

/// Opens what is at `path`: a VHDX file as such, everything else as [`crate::device::open`] does.
///
/// # Errors
/// As for [`open_device`].
pub fn open_any(path: &Path, options: OpenOptions) -> Result<Arc<dyn Device>> {
    if is_vhdx(path) { open_device(path, options) } else { crate::device::open(path, options) }
}

fn open_existing(path: &Path, options: OpenOptions, size: Option<u64>) -> Result<VhdxDevice> {
    let (shown, read_only) = (path.display(), options.read_only);
    if path.is_file() && !is_vhdx(path) {
        crate::fail!(Exists, "{shown} exists and is no VHDX file");
    }
    // Whoever writes keeps others out, wanted or not; who only looks is kept out by nobody.
    let looks = read_only && !options.exclusive;
    let file = Arc::new(if looks { HostFile::look(path)? } else { HostFile::open(path, !read_only)? });
    let image = Image::load(file.clone(), !read_only, &Environment::system(), |_| {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("{shown} stands on a parent; a pool takes images that stand alone"),
        ))
    })?;
    let io = open_growing(path, read_only)?;
    if io.identity().ok() != Some(file.identity()) {
        crate::fail!(Busy, "{shown} was replaced while it was opened");
    }
    let disk = image.disk();
    let info = DeviceInfo {
        path: path.to_path_buf(),
        size_bytes: disk.disk_size - disk.disk_size % BLOCK_SIZE as u64,
        discard: true,
        kind: "vhdx",
        ..io.info().clone()
    };
    if let Some(wanted) = size.filter(|wanted| *wanted != info.size_bytes) {
        crate::fail!(Exists, "{shown} exists and has {} bytes, not {wanted}", info.size_bytes);
    }
    if info.size_bytes == 0 {
        crate::fail!(Invalid, "{shown} is smaller than 4 KiB");
    }
    let io = Arc::new(io);
    let inner = Arc::new(Inner { image, file, io_device: io.clone(), io, info });
    let (tasks, queue) = mpsc::channel();
    let for_worker = inner.clone();
    let worker = std::thread::Builder::new().name("qrvsa-vhdx".into()).spawn(move || for_worker.work(&queue));
    let worker = worker.map_err(|e| Error::new(ErrorKind::Io, format!("{shown}: no thread")).with_source(e))?;
    Ok(VhdxDevice { inner, tasks: Some(tasks), worker: Some(worker) })
}

impl Drop for VhdxDevice {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// A piece of a request, where it lies in the file, if it does not read as zeros, and the pass of its block.
type Placed = (Piece, Option<u64>, OwnedPass);

/// Where a request goes.
enum Route {
    /// To one run of the file, from this offset on; the guard stays with it.
    File(u64, Guard),
    /// Nowhere: it reads as zeros.
    Zeros,
    /// To the thread.
    Worker,
}

impl Inner {
    fn fail(&self, request: &Request, error: &Error) -> Outcome {
        let what = format!("{}: {error}", request.describe(&self.info.path.display()));
        Outcome::Failed(IoError { errno: error.errno() as i32, what })
    }

    /// Where a piece of a request lies, taking space for a write. `None` if it reads as zeros.
    fn place(&self, shape: &Shape, piece: Piece, write: bool) -> Result<(Option<u64>, OwnedPass)> {
        let image = &self.image;
        let pass = image.gates.enter_among(piece.block);
        if write {
            return Ok((Some(image.target(shape, piece)?.offset), pass));
        }
        let entry = image.entry(shape, piece.block)?;
        match entry.payload_state() {
            PayloadState::FullyPresent => Ok((Some(image.place(shape, piece.block, entry)? + piece.within), pass)),
            PayloadState::Reserved(bits) => Err(image.reserved_state(piece.block, bits)),
            _ => Ok((None, pass)),
        }
    }

    /// Where the pieces of a request lie.
    fn places(&self, shape: &Shape, offset: u64, len: usize, write: bool) -> Result<Vec<Placed>> {
        let placed = |piece| self.place(shape, piece, write).map(|(place, pass)| (piece, place, pass));
        Image::pieces(&shape.layout, offset, len).map(placed).collect()
    }

    fn route(&self, request: &Request, len: u64) -> Result<Route> {
        let (write, durable) = match request {
            Request::Read { .. } => (false, false),
            Request::Write { durable, .. } => (true, *durable),
            Request::Flush | Request::Discard { .. } => return Ok(Route::Worker),
        };
        if write {
            self.image.begin_change(true)?;
        }
        let shape = self.image.shape.read();
        let len = usize::try_from(len).map_err(|_| Error::from(nix::errno::Errno::EINVAL))?;
        // The place must be durable, too. Asked after it was taken.
        let must_wait = || durable && self.image.has_uncommitted();
        // Nearly all requests lie in one block: they need no list.
        if let Some(piece) = Image::pieces(&shape.layout, request.offset(), len).next().filter(|piece| piece.len == len)
        {
            let (place, pass) = self.place(&shape, piece, write)?;
            return Ok(match place {
                _ if must_wait() => Route::Worker,
                Some(place) => Route::File(place, self.guard(pass)),
                None => Route::Zeros,
            });
        }
        let places = self.places(&shape, request.offset(), len, write)?;
        if must_wait() {
            return Ok(Route::Worker);
        }
        if places.iter().all(|(_, place, _)| place.is_none()) {
            return Ok(Route::Zeros);
        }
        let first = places.first().and_then(|(_, place, _)| *place);
        let one_run = places.iter().all(|(piece, place, _)| *place == first.map(|f| f + piece.at as u64));
        Ok(match first.filter(|_| one_run) {
            Some(first) => {
                let passes: Vec<OwnedPass> = places.into_iter().map(|(_, _, pass)| pass).collect();
                Route::File(first, self.guard(passes))
            }
            None => Route::Worker,
        })
    }

    fn guard<P: Send + 'static>(&self, passes: P) -> Guard {
        // The file keeps its lock until the last write has landed.
        Box::new((passes, self.file.clone()))
    }

    /// The thread: does what is queued, many at once, and commits what nobody flushes.
    fn work(&self, queue: &Receiver<Task>) {
        loop {
            let mut tasks = Vec::new();
            match queue.recv_timeout(COMMIT_AFTER) {
                Ok(task) => tasks.push(task),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            tasks.extend(queue.try_iter().take(TOGETHER));
            self.work_on(tasks);
            let age = self.image.uncommitted_ns().map(Duration::from_nanos);
            if age.is_some_and(|age| age >= COMMIT_AFTER)
                && !self.image.is_broken()
                && let Err(error) = self.image.flush()
            {
                tracing::error!(path = %self.info.path.display(), %error, "allocations could not be made durable");
            }
        }
    }

    fn work_on(&self, tasks: Vec<Task>) {
        // Written first, then one flush for all that want one.
        let mut flushed = Vec::new();
        for Task { tag, request, completions } in tasks {
            let outcome = match &request {
                Request::Read { .. } => self.read_pieces(request),
                Request::Discard { offset, len } => match self.image.trim(*offset, *len) {
                    Ok(()) => Outcome::Done(Vec::new()),
                    Err(error) => self.fail(&request, &error),
                },
                Request::Write { .. } | Request::Flush => {
                    let wants_flush = !matches!(request, Request::Write { durable: false, .. });
                    match self.write_pieces(&request) {
                        Ok(()) if wants_flush => {
                            flushed.push((tag, request, completions));
                            continue;
                        }
                        Ok(()) => Outcome::Done(Vec::new()),
                        Err(outcome) => outcome,
                    }
                }
            };
            completions.complete(tag, outcome);
        }
        if flushed.is_empty() {
            return;
        }
        let done = self.image.flush();
        for (tag, request, completions) in flushed {
            let outcome = match &done {
                Ok(()) => Outcome::Done(Vec::new()),
                Err(error) => self.fail(&request, error),
            };
            drop(request);
            completions.complete(tag, outcome);
        }
    }

    /// Runs requests on the file to their end. A request that does not answer keeps its passes for good.
    fn run(
        &self,
        requests: Vec<Request>,
        passes: Vec<OwnedPass>,
    ) -> std::result::Result<Vec<Vec<AlignedBuf>>, Outcome> {
        let mut batch = IoBatch::new();
        for request in requests {
            batch.push(&self.io_device, request);
        }
        let mut answers = Vec::new();
        for outcome in batch.wait(FILE_DEADLINE) {
            match outcome {
                Outcome::Done(bufs) => answers.push(bufs),
                Outcome::Failed(error) => return Err(Outcome::Failed(error)),
                Outcome::TimedOut => {
                    std::mem::forget(passes);
                    let what = format!("{} does not answer", self.info.path.display());
                    return Err(Outcome::Failed(IoError { errno: libc::EIO, what }));
                }
            }
        }
        Ok(answers)
    }

    fn read_pieces(&self, request: Request) -> Outcome {
        let len = request.len_bytes().and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
        let places = {
            let shape = self.image.shape.read();
            self.places(&shape, request.offset(), len, false)
        };
        let places = match places {
            Ok(places) => places,
            Err(error) => return self.fail(&request, &error),
        };
        let Request::Read { mut bufs, .. } = request else { return Outcome::Done(Vec::new()) };
        let mut contents = AlignedBuf::zeroed(len);
        let (mut requests, mut targets, mut passes) = (Vec::new(), Vec::new(), Vec::new());
        for (piece, place, pass) in places {
            passes.push(pass);
            if let Some(offset) = place {
                requests.push(Request::Read { offset, bufs: vec![AlignedBuf::zeroed(piece.len)] });
                targets.push(piece.at..piece.at + piece.len);
            }
        }
        let answers = match self.run(requests, passes) {
            Ok(answers) => answers,
            Err(outcome) => return outcome,
        };
        for (target, answer) in targets.into_iter().zip(answers) {
            if let Some(bytes) = answer.first() {
                contents[target].copy_from_slice(bytes);
            }
        }
        let mut at = 0;
        for buf in &mut bufs {
            let end = at + buf.len();
            buf.copy_from_slice(&contents[at..end]);
            at = end;
        }
        Outcome::Done(bufs)
    }

    fn write_pieces(&self, request: &Request) -> std::result::Result<(), Outcome> {
        let Request::Write { offset, slices, .. } = request else { return Ok(()) };
        let len = slices.iter().map(|s| s.len()).sum();
        let places = {
            let shape = self.image.shape.read();
            self.places(&shape, *offset, len, true)
        };
        let places = places.map_err(|error| self.fail(request, &error))?;
        let (mut requests, mut passes) = (Vec::new(), Vec::new());
        for (piece, place, pass) in places {
            passes.push(pass);
            if let Some(offset) = place {
                let slices = cut(slices, piece.at, piece.len);
                requests.push(Request::Write { offset, slices, durable: false });
            }
        }
        self.run(requests, passes).map(drop)
    }
}

/// The part of a list of slices from `at` on.
fn cut(slices: &[BufSlice], mut at: usize, mut len: usize) -> Vec<BufSlice> {
    let mut parts = Vec::new();
    for slice in slices {
        if at >= slice.len() {
            at -= slice.len();
            continue;
        }
        let end = slice.len().min(at + len);
        parts.push(slice.slice(at..end));
        len -= end - at;
        at = 0;
        if len == 0 {
            break;
        }
    }
    parts
}

impl Device for VhdxDevice {
    fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    fn submit(&self, requests: Vec<(u64, Request)>, completions: &Arc<Completions>) {
        let inner = &self.inner;
        let mut forward = Vec::with_capacity(requests.len());
        for (tag, request) in requests {
            let path = inner.info.path.display();
            let len = match request.check(inner.info.size_bytes, &path) {
                Ok(len) => len,
                Err(error) => {
                    completions.complete(tag, Outcome::Failed(error));
                    continue;
                }
            };
            if request.is_change() && !inner.image.is_writable() {
                let what = format!("{} refused (opened read-only)", request.describe(&path));
                completions.complete(tag, Outcome::Failed(IoError { errno: libc::EROFS, what }));
                continue;
            }
            if let Request::Flush = request
                && !inner.image.is_broken()
                && !inner.image.has_uncommitted()
            {
                // Everything has its place: the file's own flush is all it needs.
                forward.push((tag, request, inner.guard(())));
                continue;
            }
            match inner.route(&request, len) {
                Ok(Route::File(at, guard)) => {
                    let request = match request {
                        Request::Read { bufs, .. } => Request::Read { offset: at, bufs },
                        Request::Write { slices, durable, .. } => Request::Write { offset: at, slices, durable },
                        other => other,
                    };
                    forward.push((tag, request, guard));
                }
                Ok(Route::Zeros) => {
                    let bufs = match request {
                        Request::Read { mut bufs, .. } => {
                            bufs.iter_mut().for_each(|buf| buf.fill(0));
                            bufs
                        }
                        _ => Vec::new(),
                    };
                    completions.complete(tag, Outcome::Done(bufs));
                }
                Ok(Route::Worker) => {
                    let task = Task { tag, request, completions: completions.clone() };
                    if let Some(Err(mpsc::SendError(task))) = self.tasks.as_ref().map(|tasks| tasks.send(task)) {
                        let what = format!("{} has no thread any more", inner.info.path.display());
                        task.completions.complete(task.tag, Outcome::Failed(IoError { errno: libc::EIO, what }));
                    }
                }
                Err(error) => completions.complete(tag, inner.fail(&request, &error)),
            }
        }
        if !forward.is_empty() {
            inner.io.submit_guarded(forward, completions);
        }
    }

    fn kick(&self) {
        self.inner.io.kick();
    }

    fn drive(&self, timeout: Duration) -> bool {
        self.inner.io.drive(timeout)
    }

    fn check_presence(&self) -> std::result::Result<(), IoError> {
        let inner = &self.inner;
        let path = inner.info.path.display();
        let gone = |errno: i32, why: String| Err(IoError { errno, what: format!("{path} {why}") });
        match inner.file.is_linked() {
            Ok(true) => {}
            Ok(false) => return gone(libc::ENOENT, "was unlinked".into()),
            Err(e) => return gone(e.raw_os_error().unwrap_or(libc::EIO), "cannot be examined".into()),
        }
        let (wanted, length) = (inner.image.file_length(), inner.file.length());
        match length {
            Ok(length) if length >= wanted => Ok(()),
            Ok(length) => gone(libc::EIO, format!("shrank from {wanted} to {length} bytes")),
            Err(e) => gone(e.raw_os_error().unwrap_or(libc::EIO), "cannot be examined".into()),
        }
    }

    fn host_space(&self) -> Option<HostSpace> {
        self.inner.file.host_space().ok()
    }
}
