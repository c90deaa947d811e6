//! Secrets of CHAP: never printed, wiped when dropped.

use std::fmt;

use zeroize::Zeroizing;

/// A secret. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes a secret of 1 to 255 bytes.
    ///
    /// # Errors
    /// In words, when it is empty or too long.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Secret, String> {
        let bytes = Zeroizing::new(bytes.into());
        if bytes.is_empty() || bytes.len() > 255 {
            return Err(format!("a CHAP secret has 1 to 255 bytes, not {}; Windows takes 12 to 16", bytes.len()));
        }
        Ok(Secret(bytes))
    }

    /// The bytes, for hashing and for storing.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A name and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// CHAP_N.
    pub name: String,
    /// The secret that both sides know.
    pub secret: Secret,
}

/// Accounts of one target, or of discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Who may log in; none means that no CHAP is asked for.
    pub incoming: Vec<Account>,
    /// As whom the target answers an initiator that asks for mutual CHAP.
    pub outgoing: Option<Account>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let users = Users {
            incoming: vec![Account { name: "joe".into(), secret: Secret::new("opensesame12").unwrap() }],
            outgoing: None,
        };
        assert!(!format!("{users:?}").contains("opensesame"));
        assert!(Secret::new("").is_err());
    }
}
