//! Names of pools and filesystems, and the `POOL[/FS]` notation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Checks the name of a pool or filesystem: 1 to 63 characters, a letter or digit first, then letters, digits, `_`, `.`
/// and `-`. Such names are safe in paths, URLs, unit names and shells.
///
/// # Errors
/// `Invalid`, saying which rule is broken; `what` is `"pool"` or `"filesystem"`.
pub fn check_name(what: &str, name: &str) -> Result<(), ApiError> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "it is longer than 63 characters"
    } else if !name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) {
        "it does not begin with a letter or digit"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        "it has characters other than letters, digits, `_`, `.` and `-`"
    } else {
        return Ok(());
    };
    Err(ApiError::invalid(format!("{what} name {name:?} is not valid: {problem}"))
        .with_hint("use 1 to 63 letters, digits, `_`, `.` or `-`, the first a letter or digit"))
}

/// A filesystem by name: `POOL` (the pool's root filesystem) or `POOL/FS`. Travels as that text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FsName {
    /// Pool.
    pub pool: String,
    /// Filesystem; `None` is the root filesystem every pool has.
    pub fs: Option<String>,
}

impl FromStr for FsName {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<FsName, ApiError> {
        let (pool, fs) = match text.split_once('/') {
            Some((pool, fs)) => (pool, Some(fs)),
            None => (text, None),
        };
        check_name("pool", pool)?;
        if let Some(fs) = fs {
            check_name("filesystem", fs)?;
        }
        Ok(FsName { pool: pool.to_owned(), fs: fs.map(str::to_owned) })
    }
}

impl fmt::Display for FsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pool)?;
        if let Some(fs) = &self.fs {
            write!(f, "/{fs}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for FsName {
    type Error = ApiError;

    fn try_from(text: String) -> Result<FsName, ApiError> {
        text.parse()
    }
}

impl From<FsName> for String {
    fn from(name: FsName) -> String {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_and_bad_names() {
        for good in ["tank", "0", "a.b-c_D9", &"x".repeat(63)] {
            check_name("pool", good).unwrap();
        }
        for bad in ["", ".", "..", "-", "-a", "_a", ".a", "a b", "a/b", "ä", "a\n", "a%2f", &"x".repeat(64)] {
            assert_eq!(check_name("pool", bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn fs_names() {
        let root: FsName = "tank".parse().unwrap();
        assert_eq!((root.pool.as_str(), root.fs.as_deref()), ("tank", None));
        let fs: FsName = "tank/home".parse().unwrap();
        assert_eq!((fs.pool.as_str(), fs.fs.as_deref()), ("tank", Some("home")));
        for bad in ["", "/", "tank/", "/home", "tank/a/b", "tank//a", "tank/.."] {
            assert!(bad.parse::<FsName>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<FsName>("\"a/../b\"").is_err());
    }

    proptest! {
        #[test]
        fn names_round_trip(text in "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,62})?") {
            let name: FsName = text.parse().unwrap();
            prop_assert_eq!(name.to_string(), text);
        }

        #[test]
        fn nothing_panics(text in ".*") {
            let _ = text.parse::<FsName>();
        }
    }

    impl ApiError {
        fn exit_code(&self) -> u8 {
            self.kind.exit_code()
        }
    }
}
