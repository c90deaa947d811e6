//! One error type for the crate: a stable kind, a sentence for people, and the source.
//!
//! Retry, heal and abort are decided on [`ErrorKind`], never on the text.

use std::borrow::Cow;
use std::fmt;

use nix::errno::Errno;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A POSIX error that goes to the caller of a file operation unchanged.
    Posix(Errno),
    /// No space for the request (`ENOSPC`).
    NoSpace,
    /// The devices failed to read or write, beyond what redundancy covers (`EIO`).
    Io,
    /// Bytes from a device are not what was written, beyond repair (`EIO`).
    Corrupt,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already.
    Exists,
    /// The named thing is in use.
    Busy,
    /// A request that makes no sense; the message says why.
    Invalid,
    /// Not enough devices to go on.
    Degraded,
    /// The format or a feature is newer than this program.
    Unsupported,
    /// A destructive request that needs an explicit `--force`.
    NeedsForce,
    /// Read-only pool or mount.
    ReadOnly,
    /// The pool stopped writing: a commit failed, as when too many devices do, or it was exported or destroyed.
    Suspended,
}

/// An error with its kind, its context and, where there is one, its cause.
pub struct Error {
    kind: ErrorKind,
    context: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a sentence of context.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// A POSIX error without further context. Does not allocate.
    pub const fn posix(errno: Errno) -> Error {
        Error { kind: ErrorKind::Posix(errno), context: Cow::Borrowed(""), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The errno a file operation returns for this error.
    pub fn errno(&self) -> Errno {
        match self.kind {
            ErrorKind::Posix(errno) => errno,
            ErrorKind::NoSpace => Errno::ENOSPC,
            ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Degraded | ErrorKind::Suspended => Errno::EIO,
            ErrorKind::NotFound => Errno::ENOENT,
            ErrorKind::Exists => Errno::EEXIST,
            ErrorKind::Busy => Errno::EBUSY,
            ErrorKind::Invalid | ErrorKind::NeedsForce => Errno::EINVAL,
            ErrorKind::Unsupported => Errno::EOPNOTSUPP,
            ErrorKind::ReadOnly => Errno::EROFS,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.kind, self.context.is_empty()) {
            (ErrorKind::Posix(errno), true) => write!(f, "{}", errno.desc())?,
            (ErrorKind::Posix(errno), false) => write!(f, "{}: {}", self.context, errno.desc())?,
            (_, _) => write!(f, "{}", self.context)?,
        }
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error::posix(errno)
    }
}

/// Shorthand for `Err(Error::new(..))` with a formatted message.
#[macro_export]
macro_rules! fail {
    ($kind:ident, $($arg:tt)*) => {
        return Err($crate::Error::new($crate::ErrorKind::$kind, format!($($arg)*)))
    };
}
