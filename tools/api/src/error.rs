//! The one error of the interface: a stable kind, what happened, and how to go on.
//!
//! The kind decides the HTTP status and the exit code of the command line; the text is for people only.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as far as a client can act on it. Names in JSON are `snake_case`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense: a bad name, geometry, size, option.
    Invalid,
    /// The named pool, filesystem, device, mount or job does not exist.
    NotFound,
    /// The named thing exists already.
    Exists,
    /// The named thing is in use.
    Busy,
    /// Something would be overwritten or destroyed: ask, then repeat the request with `force`.
    NeedsForce,
    /// No space for the request.
    NoSpace,
    /// Devices failed beyond what redundancy covers.
    Io,
    /// Data is damaged beyond repair.
    Corrupt,
    /// Not enough devices to go on.
    Degraded,
    /// The pool stopped writing: a commit failed, as when too many devices do, or it was exported or destroyed.
    Suspended,
    /// Pool or filesystem is read-only.
    ReadOnly,
    /// The on-disk format, a feature or the request is not known to this program.
    Unsupported,
    /// The peer may not use the interface.
    Forbidden,
    /// The daemon is starting or stopping; try again.
    Unavailable,
    /// Client side only: nobody answers on the socket.
    Unreachable,
    /// Anything else, among it every kind this program is too old to know.
    #[serde(other)]
    Internal,
}

impl ErrorKind {
    /// The HTTP status of an answer with this kind.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            ErrorKind::Invalid => 400,
            ErrorKind::Forbidden => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::Exists | ErrorKind::Busy | ErrorKind::NeedsForce | ErrorKind::ReadOnly => 409,
            ErrorKind::Unsupported => 501,
            ErrorKind::Degraded | ErrorKind::Suspended | ErrorKind::Unavailable | ErrorKind::Unreachable => 503,
            ErrorKind::NoSpace => 507,
            ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Internal => 500,
        }
    }

    /// The exit code of the command line, see [`EXIT_CODES`].
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Invalid => 2,
            ErrorKind::Unreachable | ErrorKind::Unavailable | ErrorKind::Forbidden => 3,
            ErrorKind::NeedsForce => 5,
            ErrorKind::NotFound => 6,
            ErrorKind::Exists | ErrorKind::Busy => 7,
            ErrorKind::Degraded | ErrorKind::Suspended | ErrorKind::Io | ErrorKind::Corrupt => 8,
            ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::Unsupported | ErrorKind::Internal => 1,
        }
    }

    /// What to say when whoever failed had no better advice.
    #[must_use]
    pub fn default_hint(self) -> &'static str {
        match self {
            ErrorKind::Invalid => "see `qrvsa help` for what is accepted",
            ErrorKind::NotFound => "`qrvsa pool list`, `qrvsa fs list` and `qrvsa mount` show what there is",
            ErrorKind::Exists => "choose another name, or remove the existing one first",
            ErrorKind::Busy => "end what uses it and try again",
            ErrorKind::NeedsForce => "repeat with --force if what is there may be lost",
            ErrorKind::NoSpace => "free some space",
            ErrorKind::Io => "`qrvsa pool status` shows which device failed",
            ErrorKind::Corrupt => "`qrvsa pool status` lists damaged files; restore them from a backup",
            ErrorKind::Degraded => "bring the missing devices back, then `qrvsa pool online`",
            ErrorKind::Suspended => {
                "bring the failed devices back, then restart the daemon; or `qrvsa pool export` and `qrvsa pool import`, \
                 which want the pool's LUNs removed"
            }
            ErrorKind::ReadOnly => "mount or import it writable first",
            ErrorKind::Unsupported => "use a newer version of this program",
            ErrorKind::Forbidden => "run the command as root",
            ErrorKind::Unavailable => "the daemon is starting or stopping, try again in a moment",
            ErrorKind::Unreachable => "start the daemon with `systemctl start qrvsad`",
            ErrorKind::Internal => "see the log of the daemon (`journalctl -u qrvsad`)",
        }
    }
}

/// The exit codes of `qrvsa`, stable across versions: code and meaning.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done; for `check` and jobs that were waited for: everything is consistent"),
    (1, "the request failed for a reason not listed here (no space, read-only, unsupported, internal error)"),
    (2, "usage: the command line, or a value in it, is not valid"),
    (3, "the daemon cannot be reached or does not serve this user"),
    (4, "`check`, or a job that was waited for, found problems that were not repaired"),
    (5, "confirmation is needed: something would be overwritten or destroyed and --force was not given"),
    (6, "the named pool, filesystem, device, mount or job does not exist"),
    (7, "the named thing exists already or is in use"),
    (8, "the pool cannot serve the request: devices are missing or failed, or data is damaged"),
];

/// An error as it travels: the body of every answer with a status of 400 or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// The kind.
    pub kind: ErrorKind,
    /// What failed and why, one line.
    pub message: String,
    /// How to go on, one line. Empty only in bodies from elsewhere.
    #[serde(default)]
    pub hint: String,
}

impl ApiError {
    /// An error with the default hint of its kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: one_line(&message.into()), hint: kind.default_hint().to_owned() }
    }

    /// An error from text of the storage, which may say itself how to go on, behind the last `; `. Then that is the hint,
    /// and the default one is left out.
    pub fn from_text(kind: ErrorKind, text: &str) -> ApiError {
        match text.rsplit_once("; ") {
            // A path, or the cause of an error behind its hint, is no hint: it stays where it is.
            Some((what, hint)) if !hint.contains('/') && !hint.contains(": ") => {
                ApiError::new(kind, what).with_hint(hint)
            }
            Some(_) => ApiError::new(kind, text).with_hint(""),
            None => ApiError::new(kind, text),
        }
    }

    /// Replaces the hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> ApiError {
        self.hint = one_line(&hint.into());
        self
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorKind::Invalid, message)
    }

    /// A thing that does not exist.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorKind::NotFound, message)
    }

    /// A thing in use.
    pub fn busy(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorKind::Busy, message)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, ": {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

/// Errors are one line each, whatever is put into them (file names may hold newlines and terminal escapes).
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[ErrorKind] = &[
        ErrorKind::Invalid,
        ErrorKind::NotFound,
        ErrorKind::Exists,
        ErrorKind::Busy,
        ErrorKind::NeedsForce,
        ErrorKind::NoSpace,
        ErrorKind::Io,
        ErrorKind::Corrupt,
        ErrorKind::Degraded,
        ErrorKind::Suspended,
        ErrorKind::ReadOnly,
        ErrorKind::Unsupported,
        ErrorKind::Forbidden,
        ErrorKind::Unavailable,
        ErrorKind::Unreachable,
        ErrorKind::Internal,
    ];

    #[test]
    fn every_kind_has_a_listed_exit_code_an_error_status_and_a_hint() {
        for kind in ALL {
            assert!(EXIT_CODES.iter().any(|(code, _)| *code == kind.exit_code()), "{kind:?}");
            assert!(kind.exit_code() != 0);
            assert!((400..600).contains(&kind.http_status()), "{kind:?}");
            assert!(!kind.default_hint().is_empty());
            let json = serde_json::to_string(kind).unwrap();
            assert_eq!(serde_json::from_str::<ErrorKind>(&json).unwrap(), *kind);
        }
    }

    #[test]
    fn unknown_kinds_decode() {
        let error: ApiError = serde_json::from_str(r#"{"kind":"from_the_future","message":"m"}"#).unwrap();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert_eq!(error.hint, "");
    }

    #[test]
    fn there_is_one_way_out() {
        for (text, shown) in [
            ("'p/v' exists already", "'p/v' exists already: choose another name, or remove the existing one first"),
            ("'p/v' exists already; choose another name", "'p/v' exists already: choose another name"),
            ("a; b; choose another name", "a; b: choose another name"),
            ("no device '9'; it has /dev/a, /dev/b", "no device '9'; it has /dev/a, /dev/b"),
            ("it is another; use 'pool replace': bad label", "it is another; use 'pool replace': bad label"),
        ] {
            assert_eq!(ApiError::from_text(ErrorKind::Exists, text).to_string(), shown);
        }
    }

    #[test]
    fn errors_print_as_one_line() {
        let error = ApiError::invalid("bad\nname \x1b[31m").with_hint("do\r\nthis");
        assert_eq!(error.to_string().lines().count(), 1);
        assert!(!error.to_string().contains('\x1b'));
    }
}
