//! Errors of the service's management.

use std::fmt;

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was named is not there.
    NotFound,
    /// It is there already.
    Exists,
    /// It is in use.
    Busy,
    /// The request makes no sense.
    Invalid,
    /// The operating system refused.
    Io,
}

/// A failure: its kind, and one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    /// For programs.
    pub kind: ErrorKind,
    /// What happened, and the way out.
    pub text: String,
}

impl ServiceError {
    pub(crate) fn new(kind: ErrorKind, text: String) -> ServiceError {
        ServiceError { kind, text }
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ServiceError {}
