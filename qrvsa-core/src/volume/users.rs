//! Who may write to a volume: any number who share it (logical units, its file in `.volumes`), or one alone who fills it.
//!
//! Reading needs no permission. Whoever fills a volume replaces all of it, and nobody can make sense of a disk that changes
//! under him; so the two exclude each other.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Volume;
use crate::error::Result;
use crate::fail;

/// Who writes at the moment.
#[derive(Default)]
pub(super) struct Users(Mutex<Writers>);

#[derive(Clone, Copy, Default)]
struct Writers {
    sharing: usize,
    alone: bool,
}

/// The permission to write beside others. Holds the volume.
pub struct Sharing(Arc<Volume>);

/// The permission to write alone. Holds the volume.
pub struct Alone(Arc<Volume>);

impl Volume {
    /// Allows writing beside others, until the value is dropped.
    ///
    /// # Errors
    /// `Busy` while somebody writes alone.
    pub fn share(self: &Arc<Volume>) -> Result<Sharing> {
        let mut writers = self.users.0.lock();
        if writers.alone {
            fail!(Busy, "volume '{}' is being filled by a conversion; wait until that ends", self.name());
        }
        writers.sharing += 1;
        Ok(Sharing(self.clone()))
    }

    /// Allows writing alone, until the value is dropped.
    ///
    /// # Errors
    /// `Busy` while anybody else may write.
    pub fn alone(self: &Arc<Volume>) -> Result<Alone> {
        let mut writers = self.users.0.lock();
        if writers.alone {
            fail!(Busy, "volume '{}' is being filled by another conversion; wait until that ends", self.name());
        }
        if writers.sharing > 0 {
            fail!(
                Busy,
                "volume '{}' is in use, by a target or through its file in .volumes; end that first",
                self.name()
            );
        }
        writers.alone = true;
        Ok(Alone(self.clone()))
    }

    /// Whether somebody may write beside others, or alone.
    pub fn in_use(&self) -> bool {
        let writers = *self.users.0.lock();
        writers.alone || writers.sharing > 0
    }
}

impl Alone {
    /// Makes all of the volume read as zeros and gives its space back, that of a last block which is not whole too.
    ///
    /// # Errors
    /// As [`Volume::discard`]; a part may be done.
    pub fn clear(&self) -> Result<()> {
        // What is cleared behind the end is not to become part of the volume meanwhile.
        let _resizing = self.0.resizing.lock();
        self.0.clear(self.0.whole_records(&(0..self.0.size_bytes())))
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.0.users.0.lock().sharing -= 1;
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.users.0.lock().alone = false;
    }
}

impl std::ops::Deref for Alone {
    type Target = Volume;

    fn deref(&self) -> &Volume {
        &self.0
    }
}
