//! A violation of the specification, inside one structure.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, ErrorKind};

/// What is wrong, and where in its structure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Bytes from the start of the structure to the field concerned.
    pub at: u64,
    /// What is wrong, in words, with the value found.
    pub what: Cow<'static, str>,
    /// Whether nothing can be computed from the structure.
    pub fatal: bool,
}

impl Problem {
    /// A violation that makes the structure unusable.
    pub fn fatal(at: u64, what: impl Into<Cow<'static, str>>) -> Problem {
        Problem { at, what: what.into(), fatal: true }
    }

    /// A violation that a careful reader can live with.
    pub fn minor(at: u64, what: impl Into<Cow<'static, str>>) -> Problem {
        Problem { at, what: what.into(), fatal: false }
    }

    /// The error of the structure called `structure`.
    pub fn into_error(self, structure: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("{structure}: {self}"))
    }

    /// The first fatal one of `problems` as the error of `structure`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if there is one.
    pub fn refuse(problems: Vec<Problem>, structure: &str) -> crate::Result<()> {
        match problems.into_iter().find(|p| p.fatal) {
            Some(problem) => Err(problem.into_error(structure)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (byte {})", self.what, self.at)
    }
}
