//! Where a unit's own state lies: in the pool for volumes, so that it goes where they go; else in the state directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use qrvsa_iscsi::scsi::Persistence;

use crate::engine::Engine;
use crate::state::StateDir;

/// The store of one target's units. Keys end with `/` and the unit's number.
pub struct Keep {
    engine: Arc<dyn Engine>,
    state: Arc<StateDir>,
    /// Never held while something is stored: a pool that hangs holds up its own units only.
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// Units whose storage lies in a pool, and that pool.
    pools: BTreeMap<u64, String>,
    /// Counts what was stored.
    puts: u64,
    /// Counts what was said of where units lie.
    moves: u64,
}

impl Places {
    fn set(&mut self, number: u64, pool: Option<&str>) {
        self.moves += 1;
        match pool {
            Some(pool) => self.pools.insert(number, pool.to_owned()),
            None => self.pools.remove(&number),
        };
    }

    /// The pool of a key's unit, and how many moves there were.
    fn of(&self, key: &str) -> (Option<String>, u64) {
        let number = key.rsplit('/').next().and_then(|number| number.parse::<u64>().ok());
        (number.and_then(|number| self.pools.get(&number).cloned()), self.moves)
    }
}

impl Keep {
    /// A store; where units belong is said with [`Keep::assign`].
    pub fn new(engine: Arc<dyn Engine>, state: Arc<StateDir>) -> Keep {
        Keep { engine, state, places: Mutex::default() }
    }

    /// Says where a unit's state lies from now on: in a pool, or in the state directory.
    pub fn assign(&self, number: u64, pool: Option<&str>) {
        self.places.lock().set(number, pool);
    }

    /// As [`Keep::assign`], and takes along what lies where it did under these keys, and what is stored meanwhile.
    ///
    /// # Errors
    /// The one place or the other, in words; the unit's state lies where it did then.
    pub fn move_to(&self, number: u64, pool: Option<&str>, keys: &[String]) -> Result<(), String> {
        loop {
            let (from, puts) = {
                let places = self.places.lock();
                (places.pools.get(&number).cloned(), places.puts)
            };
            if from.as_deref() == pool {
                return Ok(());
            }
            for key in keys {
                let value = self.get_at(from.as_deref(), key)?.unwrap_or_default();
                // Nothing, too: what another unit of that number has left there is not this one's.
                if value != self.get_at(pool, key)?.unwrap_or_default() {
                    self.put_at(pool, key, &value)?;
                }
            }
            let mut places = self.places.lock();
            if places.puts == puts {
                places.set(number, pool);
                return Ok(());
            }
        }
    }

    fn put_at(&self, pool: Option<&str>, key: &str, value: &[u8]) -> Result<(), String> {
        match pool {
            Some(pool) => self.engine.put_blob(pool, &format!("iscsi/{key}"), value).map_err(|e| e.to_string()),
            None => self
                .state
                .write(&file_name(key), value)
                .map_err(|e| format!("cannot write {}: {e}", self.state.path().join(file_name(key)).display())),
        }
    }

    fn get_at(&self, pool: Option<&str>, key: &str) -> Result<Option<Vec<u8>>, String> {
        match pool {
            Some(pool) => self.engine.blob(pool, &format!("iscsi/{key}")).map_err(|e| e.to_string()),
            None => self
                .state
                .read(&file_name(key))
                .map_err(|e| format!("cannot read {}: {e}", self.state.path().join(file_name(key)).display())),
        }
    }
}

impl Persistence for Keep {
    fn put(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let mut place = self.places.lock().of(key);
        loop {
            self.put_at(place.0.as_deref(), key, value)?;
            let now = {
                let mut places = self.places.lock();
                places.puts += 1;
                places.of(key)
            };
            // Whoever is about to move the unit looks again; if it has moved, it is stored where it lies now.
            if now == place {
                return Ok(());
            }
            place = now;
        }
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        let (pool, _) = self.places.lock().of(key);
        self.get_at(pool.as_deref(), key)
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
    use std::time::Duration;

    use qrvsa_api::{CreatePool, DeviceSpec};

    use super::*;
    use crate::engine::EngineOptions;
    use crate::engine_core::CoreEngine;

    #[test]
    fn file_names_are_plain() {
        assert_eq!(file_name("modes/iqn.2026-01.test:a/3"), "lun-modes%2Fiqn.2026-01.test%3Aa%2F3");
        assert!(!file_name("../../etc").contains('/'));
        let long = |n: u32| file_name(&format!("modes/iqn.{}/{n}", ":".repeat(200)));
        assert!(long(1).len() < 200 && long(1) != long(2));
    }

    #[test]
    fn what_is_stored_moves_with_its_unit() {
        let dir = tempfile::tempdir().unwrap();
        let engine = CoreEngine::new(EngineOptions {
            memory_limit_bytes: 64 << 20,
            sync_interval: Duration::from_secs(60),
            scrub_rate_bytes_per_s: None,
        });
        let device = DeviceSpec { path: dir.path().join("member"), size_bytes: Some(256 << 20), vhdx: false };
        let request = CreatePool { name: "tank".into(), devices: vec![device], geometry: None, force: false };
        engine.create_pool(&request).unwrap();
        let engine = Arc::new(engine);
        let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
        let keep = Keep::new(engine.clone(), state);
        let keys = ["reservations/iqn.x/1".to_owned(), "modes/iqn.x/1".to_owned()];
        keep.put(&keys[0], b"held").unwrap();
        keep.put("modes/iqn.x/2", b"of another").unwrap();
        // what is there already is of an earlier unit
        engine.put_blob("tank", "iscsi/modes/iqn.x/1", b"old").unwrap();
        keep.move_to(1, Some("tank"), &keys).unwrap();
        assert_eq!(keep.get(&keys[0]).unwrap().unwrap(), b"held");
        assert_eq!(keep.get(&keys[1]).unwrap().unwrap_or_default(), b"");
        assert_eq!(engine.blob("tank", "iscsi/reservations/iqn.x/1").unwrap().unwrap(), b"held");
        assert_eq!(keep.get("modes/iqn.x/2").unwrap().unwrap(), b"of another");
        keep.put(&keys[0], b"held by another").unwrap();
        keep.move_to(1, None, &keys).unwrap();
        assert_eq!(keep.get(&keys[0]).unwrap().unwrap(), b"held by another");
        // a place that is not there: it stays where it is
        assert!(keep.move_to(1, Some("none"), &keys).is_err());
        assert_eq!(keep.get(&keys[0]).unwrap().unwrap(), b"held by another");
        // what is stored while it moves is not left behind
        let stored = std::thread::scope(|scope| {
            let putting = scope.spawn(|| {
                for n in 0..50_u32 {
                    keep.put(&keys[0], &n.to_le_bytes()).unwrap();
                }
            });
            let mut to = Some("tank");
            while !putting.is_finished() {
                keep.move_to(1, to, &keys).unwrap();
                to = if to.is_some() { None } else { Some("tank") };
            }
            putting.join().unwrap();
            keep.get(&keys[0]).unwrap().unwrap()
        });
        assert_eq!(stored, 49_u32.to_le_bytes());
        engine.export("tank").unwrap();
    }
}
