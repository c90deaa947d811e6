//! Volumes in a world: they come and go, are written and flushed, and suffer what the pool suffers.

use qrvsa_core::env::Random;
use qrvsa_core::{Error, ErrorKind};

use super::{Inner, Verdict};
use crate::fault::{Kind, Target};
use crate::plan::pick;
use crate::session::is_full;
use crate::volumes::{self, Deed, Model, Verb, Way};

impl Inner {
    /// A volume comes or goes.
    pub(super) fn change_volumes(&mut self) -> Verdict<()> {
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        let goes = self.random.below(4) < names.len() as u64;
        // a name is used once: what was written to it can be told from what was written to another
        let volume = if goes { pick(&self.random, &names).clone() } else { format!("vol{}", self.operations) };
        let verb = if goes { Verb::Destroy } else { Verb::Create(volumes::spec(&self.random)) };
        self.perform_deed(&Deed { volume, verb })
    }

    /// One more volume whose space is set aside.
    pub(super) fn add_reserved(&mut self) -> Verdict<()> {
        let volume = format!("vol{}", self.operations);
        let spec = qrvsa_core::volume::Spec { reserve: true, ..volumes::spec(&self.random) };
        self.perform_deed(&Deed { volume, verb: Verb::Create(spec) })
    }

    /// Writes all of each volume whose space is set aside. The pool is full: it is there, or it was never set aside.
    pub(super) fn fill_reserved(&mut self) -> Verdict<()> {
        let reserved = self.volumes.iter().filter(|(_, model)| model.spec.reserve);
        let reserved: Vec<(String, u64)> = reserved.map(|(name, model)| (name.clone(), model.size)).collect();
        for (volume, size) in reserved {
            let seed = self.random.next_u64();
            let verb = Verb::Write { offset: 0, len: size as usize, seed, way: Way::Plain, fua: false };
            self.perform_deed(&Deed { volume, verb })?;
        }
        Ok(())
    }

    /// Does something to a volume; the model follows.
    pub(super) fn perform_deed(&mut self, deed: &Deed) -> Verdict<()> {
        if self.off() || self.session.is_none() {
            return Ok(());
        }
        self.operations += 1;
        self.clock.advance(std::time::Duration::from_millis(1 + self.random.below(20)));
        let pool = self.pool();
        let (committed, uberblocks) = (pool.committed_txg(), self.bus.0.lock().uberblocks);
        if self.random.chance(1, 8) {
            pool.records.drop_cache();
        }
        let session = self.session.as_mut().expect("open");
        let result = volumes::run(session, &self.volumes, deed);
        self.tell(|| format!("{deed:?}: {}", result.as_ref().err().map_or("ok".to_owned(), Error::to_string)));
        if pool.committed_txg() != committed {
            // everything before it is durable, and it may be
            self.all_durable();
        } else if self.bus.0.lock().uberblocks != uberblocks {
            let full = self.full_state();
            self.allowed.push(full);
        }
        match result {
            Ok(()) => volumes::follow(&mut self.volumes, deed, true),
            Err(_) if self.off() => volumes::follow(&mut self.volumes, deed, false),
            Err(e) if is_full(&e) => {
                let state = self.bus.0.lock().state;
                self.table.count(Kind::Full, Target::Data, state);
                self.is_crowded(super::room::wanted_by(&deed.verb)).map_err(|why| format!("{deed:?}: {why}"))?;
                let reserved = self.volumes.get(&deed.volume).is_some_and(|v| v.spec.reserve);
                let wants_room = matches!(deed.verb, Verb::Write { .. } | Verb::Pierce { .. } | Verb::Discard(..));
                if reserved && wants_room && !self.beyond {
                    return Err(format!("{deed:?} found no room, which was set aside: {e}"));
                }
                self.half_done(deed)?;
            }
            Err(e) if self.beyond && !e.to_string().contains("wrong bytes") => {
                self.tell(|| format!("an honest error: {e}"));
                if matches!(deed.verb, Verb::Create(_) | Verb::Destroy | Verb::Resize(_)) {
                    // whether it was done is known after the next import
                    self.bus.0.lock().off = true;
                    volumes::follow(&mut self.volumes, deed, false);
                } else {
                    self.half_done(deed)?;
                }
            }
            Err(e) if self.beyond && e.kind() == ErrorKind::Corrupt && self.written_once(&deed.volume) => {
                self.tell(|| format!("an older state: {e}"));
            }
            Err(e) => return Err(format!("{deed:?} failed within the promise: {e}")),
        }
        self.rest();
        Ok(())
    }

    /// After an error with the power on: a deed on contents was done, or not, or to a part.
    fn half_done(&mut self, deed: &Deed) -> Verdict<()> {
        let whole = matches!(deed.verb, Verb::Write { way: Way::Atomic | Way::Compared, .. });
        let contents =
            matches!(deed.verb, Verb::Write { .. } | Verb::Overtake(..) | Verb::Pierce { .. } | Verb::Discard(..));
        if !contents || (whole && !self.beyond) {
            return Ok(());
        }
        volumes::follow(&mut self.volumes, deed, false);
        let session = self.session.as_mut().expect("open");
        match volumes::look_again(session, &mut self.volumes, &deed.volume) {
            Err(text) if !self.beyond => return Err(text),
            Err(text) => {
                // nobody knows what it is
                session.volumes.remove(&deed.volume);
                self.volumes.remove(&deed.volume);
                self.tell(|| format!("an honest end of {}: {text}", deed.volume));
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Whether everything that can be read of a volume was written there.
    fn written_once(&self, name: &str) -> bool {
        let session = self.session.as_ref().expect("open");
        let found = session.read_volume(name);
        found.ok().zip(self.volumes.get(name)).is_some_and(|(bytes, model)| model.was_written(&bytes).is_ok())
    }

    /// Beyond the promise: what can be read of volumes was written there once.
    pub(super) fn volumes_beyond(&self) -> Verdict<()> {
        let session = self.session.as_ref().expect("open");
        for (name, model) in &self.volumes {
            if !session.volumes.contains_key(name) {
                continue;
            }
            if let Ok(bytes) = session.read_volume(name) {
                model.was_written(&bytes).map_err(|e| format!("volume {name}: {e}"))?;
            }
        }
        Ok(())
    }

    /// Beyond the promise: what can be read of volumes is what there is from here on.
    pub(super) fn adopt_volumes(&mut self) {
        let session = self.session.as_mut().expect("open");
        session.volumes.retain(|name, _| self.volumes.contains_key(name));
        let readable = |name: &String, model: &mut Model| {
            let found = session.volumes.contains_key(name).then(|| session.read_volume(name));
            matches!(found, Some(Ok(bytes)) if { model.adopt(&bytes); true })
        };
        self.volumes.retain(readable);
    }
}
