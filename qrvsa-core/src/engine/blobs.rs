//! Small values that front ends keep in the pool: persistent reservations of logical units, for example.
//!
//! A blob is an item of the pool tree. All of them are in memory too; there are few.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::Pool;
use crate::bytes::{Reader, Writer};
use crate::dataset::Host;
use crate::error::Result;
use crate::fail;
use crate::item::VALUE_BYTES_MAX;
use crate::pool::format::entries::kind;
use crate::tree::Key;

/// Longest name of a blob, in bytes.
pub const BLOB_NAME_BYTES_MAX: usize = 255;
/// Largest blob, in bytes.
pub const BLOB_BYTES_MAX: usize = VALUE_BYTES_MAX - BLOB_NAME_BYTES_MAX - 2;
/// Most blobs in a pool: about 100 MB of memory if all are large.
const BLOBS_MAX: usize = 16_384;

/// The blobs of a pool: number and value by name.
#[derive(Default)]
pub(crate) struct Blobs(Mutex<BTreeMap<String, (u64, Vec<u8>)>>);

impl Blobs {
    /// Takes over what the pool tree had at import.
    pub(crate) fn restore(&self, stored: &[(u64, Vec<u8>)]) -> Result<()> {
        let mut blobs = self.0.lock();
        for (number, value) in stored {
            let mut r = Reader::new(value, "blob");
            let name = r.short_string()?;
            blobs.insert(name, (*number, r.rest().to_vec()));
        }
        Ok(())
    }
}

fn key(number: u64) -> Key {
    Key::new(0, kind::BLOB, number)
}

impl Pool {
    /// Keeps a value under a name, in place of an older one. Durable at the return.
    ///
    /// # Errors
    /// `Invalid` for a name or value that is too long, or too many; `ReadOnly`, `Suspended`.
    pub fn put_blob(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if name.is_empty() || name.len() > BLOB_NAME_BYTES_MAX || bytes.len() > BLOB_BYTES_MAX {
            fail!(Invalid, "a value kept in the pool has a name of 1 to 255 bytes and at most {BLOB_BYTES_MAX} bytes");
        }
        self.check_writable()?;
        {
            let mut blobs = self.blobs.0.lock();
            let number = match blobs.get(name) {
                Some((number, _)) => *number,
                None if blobs.len() >= BLOBS_MAX => fail!(Invalid, "a pool keeps at most {BLOBS_MAX} values"),
                None => blobs.values().map(|(number, _)| *number).max().unwrap_or(0) + 1,
            };
            let mut w = Writer::new();
            w.short_bytes(name.as_bytes()).raw(bytes);
            // under the lock: of two calls the later one is stored
            self.put_pool_item(key(number), Some(w.finish()));
            blobs.insert(name.to_owned(), (number, bytes.to_vec()));
        }
        self.commit_now()
    }

    /// The value kept under a name.
    pub fn blob(&self, name: &str) -> Option<Vec<u8>> {
        self.blobs.0.lock().get(name).map(|(_, bytes)| bytes.clone())
    }

    /// Names of the blobs that begin with `prefix`.
    pub fn blob_names(&self, prefix: &str) -> Vec<String> {
        let blobs = self.blobs.0.lock();
        blobs.range(prefix.to_owned()..).take_while(|(n, _)| n.starts_with(prefix)).map(|(n, _)| n.clone()).collect()
    }

    /// Forgets a value, if there is one. Durable at the return.
    ///
    /// # Errors
    /// `ReadOnly`, `Suspended`.
    pub fn remove_blob(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        {
            let mut blobs = self.blobs.0.lock();
            let Some((number, _)) = blobs.remove(name) else { return Ok(()) };
            self.put_pool_item(key(number), None);
        }
        self.commit_now()
    }
}
