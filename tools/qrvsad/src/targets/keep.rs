//! Where a unit's own state lies: in the pool for volumes, so that it goes where they go; else in the state directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use qrvsa_iscsi::scsi::Persistence;

use crate::engine::Engine;
use crate::state::StateDir;

/// The store of one target's units. Keys end with `/` and the unit's number.
pub struct Keep {
    engine: Arc<dyn Engine>,
    state: Arc<StateDir>,
    /// Units whose storage is a volume, and its pool.
    pools: RwLock<BTreeMap<u64, String>>,
}

impl Keep {
    /// A store; where units belong is said with [`Keep::assign`].
    pub fn new(engine: Arc<dyn Engine>, state: Arc<StateDir>) -> Keep {
        Keep { engine, state, pools: RwLock::default() }
    }

    /// Says where a unit's state lies from now on: in a pool, or in the state directory.
    pub fn assign(&self, number: u64, pool: Option<&str>) {
        let mut pools = self.pools.write();
        match pool {
            Some(pool) => pools.insert(number, pool.to_owned()),
            None => pools.remove(&number),
        };
    }

    fn pool(&self, key: &str) -> Option<String> {
        let number = key.rsplit('/').next()?.parse().ok()?;
        self.pools.read().get(&number).cloned()
    }
}

impl Persistence for Keep {
    fn put(&self, key: &str, value: &[u8]) -> Result<(), String> {
        match self.pool(key) {
            Some(pool) => self.engine.put_blob(&pool, &format!("iscsi/{key}"), value).map_err(|e| e.to_string()),
            None => self
                .state
                .write(&file_name(key), value)
                .map_err(|e| format!("cannot write {}: {e}", self.state.path().join(file_name(key)).display())),
        }
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        match self.pool(key) {
            Some(pool) => self.engine.blob(&pool, &format!("iscsi/{key}")).map_err(|e| e.to_string()),
            None => self
                .state
                .read(&file_name(key))
                .map_err(|e| format!("cannot read {}: {e}", self.state.path().join(file_name(key)).display())),
        }
    }
}

/// A key as the name of a file: what is not a letter, digit, `.` or `-` becomes `%XX`.
fn file_name(key: &str) -> String {
    let mut name = "lun-".to_owned();
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    // Names of targets may be too long for one of a file: a number that stands for them then.
    if name.len() > 200 {
        let hash = super::luns::fnv(key.as_bytes());
        name = format!("lun-{hash:032x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_plain() {
        assert_eq!(file_name("modes/iqn.2026-01.test:a/3"), "lun-modes%2Fiqn.2026-01.test%3Aa%2F3");
        assert!(!file_name("../../etc").contains('/'));
        let long = |n: u32| file_name(&format!("modes/iqn.{}/{n}", ":".repeat(200)));
        assert!(long(1).len() < 200 && long(1) != long(2));
    }
}
