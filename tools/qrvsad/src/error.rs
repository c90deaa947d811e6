//! From the engine's errors to the interface's.

use qrvsa_api::{ApiError, ErrorKind};
use qrvsa_core::ErrorKind as Core;

use nix::errno::Errno;

/// Translates an error of the engine or the front end.
#[must_use]
pub fn from_core(error: &qrvsa_core::Error) -> ApiError {
    let kind = match error.kind() {
        Core::Posix(errno) => match errno {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => ErrorKind::NotFound,
            Errno::EEXIST => ErrorKind::Exists,
            Errno::EBUSY | Errno::ETXTBSY => ErrorKind::Busy,
            Errno::EINVAL | Errno::ENOTDIR | Errno::EISDIR | Errno::ENAMETOOLONG | Errno::ENOTBLK => ErrorKind::Invalid,
            Errno::ENOSPC | Errno::EDQUOT => ErrorKind::NoSpace,
            Errno::EIO => ErrorKind::Io,
            Errno::EROFS => ErrorKind::ReadOnly,
            Errno::EOPNOTSUPP | Errno::ENOSYS => ErrorKind::Unsupported,
            _ => ErrorKind::Internal,
        },
        Core::NoSpace => ErrorKind::NoSpace,
        Core::Io => ErrorKind::Io,
        Core::Corrupt => ErrorKind::Corrupt,
        Core::NotFound => ErrorKind::NotFound,
        Core::Exists => ErrorKind::Exists,
        Core::Busy => ErrorKind::Busy,
        Core::Invalid => ErrorKind::Invalid,
        Core::Degraded => ErrorKind::Degraded,
        Core::Unsupported => ErrorKind::Unsupported,
        Core::NeedsForce => ErrorKind::NeedsForce,
        Core::ReadOnly => ErrorKind::ReadOnly,
        Core::Suspended => ErrorKind::Suspended,
        _ => ErrorKind::Internal,
    };
    ApiError::from_text(kind, &error.to_string())
}

/// Adds the translation to results.
pub trait IntoApi<T> {
    /// Translates the error.
    ///
    /// # Errors
    /// The translated error.
    fn api(self) -> Result<T, ApiError>;
}

impl<T> IntoApi<T> for qrvsa_core::Result<T> {
    fn api(self) -> Result<T, ApiError> {
        self.map_err(|e| from_core(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_and_kinds_agree() {
        for (core, api) in [
            (Core::NotFound, ErrorKind::NotFound),
            (Core::Posix(Errno::ENOENT), ErrorKind::NotFound),
            (Core::Posix(Errno::EBUSY), ErrorKind::Busy),
            (Core::NeedsForce, ErrorKind::NeedsForce),
            (Core::Suspended, ErrorKind::Suspended),
            (Core::Posix(Errno::EPERM), ErrorKind::Internal),
        ] {
            let error = from_core(&qrvsa_core::Error::new(core, "x"));
            assert_eq!(error.kind, api);
            assert!(!error.hint.is_empty() && !error.message.is_empty());
        }
    }

    #[test]
    fn the_engines_own_hint_is_the_only_one() {
        let error = from_core(&qrvsa_core::Error::new(Core::Exists, "'p/v' exists already; choose another name"));
        assert_eq!(error.to_string(), "'p/v' exists already: choose another name");
    }
}
