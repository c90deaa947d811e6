//! Reservations of a unit: persistent ones (SPC-4 5.13) and those of SPC-2 (RESERVE and RELEASE).

mod input;
mod output;
mod persist;
mod transport;

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Nexus;
use super::table::Access;

pub(crate) use input::{persistent_in, read_full_status, report_capabilities};
pub(crate) use output::{legacy_release, legacy_reserve, persistent_out};

/// The names by which registrations are kept: an initiator port and a target port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortPair {
    pub initiator: String,
    pub isid: [u8; 6],
    pub group: u16,
}

impl PortPair {
    pub(crate) fn of(nexus: &Nexus) -> Self {
        Self { initiator: nexus.initiator_name.clone(), isid: nexus.isid, group: nexus.portal_group_tag }
    }

    pub(crate) fn is(&self, nexus: &Nexus) -> bool {
        self.group == nexus.portal_group_tag && self.isid == nexus.isid && self.initiator == nexus.initiator_name
    }
}

/// Persistent reservation types (SPC-4 6.15.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Kind {
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrants,
            6 => Self::ExclusiveAccessRegistrants,
            7 => Self::WriteExclusiveAll,
            8 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// Others may read.
    const fn lets_read(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::WriteExclusiveRegistrants | Self::WriteExclusiveAll)
    }

    /// Every registrant has the access of the holder.
    const fn registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Every registrant is a holder.
    const fn all(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub port: PortPair,
    pub key: u64,
    /// Made for all target ports at once.
    pub all_ports: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub kind: Kind,
    /// Who holds it; for kinds that all registrants hold, nobody.
    pub holder: Option<PortPair>,
}

/// The persistent part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub generation: u32,
    /// Survives a loss of power.
    pub aptpl: bool,
    pub registrations: Vec<Registration>,
    pub holding: Option<Holding>,
}

/// Registrations that a unit takes.
pub(crate) const REGISTRATIONS_MAX: usize = 1024;

impl State {
    pub(crate) fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrations.iter().find(|r| r.port.is(nexus)).map(|r| r.key)
    }

    fn holds(&self, port: &PortPair) -> bool {
        match &self.holding {
            Some(Holding { holder: Some(holder), .. }) => holder == port,
            Some(Holding { holder: None, .. }) => self.registrations.iter().any(|r| r.port == *port),
            None => false,
        }
    }

    fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.holding {
            Some(Holding { holder: Some(holder), .. }) => holder.is(nexus),
            Some(Holding { holder: None, .. }) => self.key_of(nexus).is_some(),
            None => false,
        }
    }

    /// Whether a command of this access may run for this nexus.
    fn allows(&self, nexus: &Nexus, access: Access, cdb: &[u8; 16]) -> bool {
        let Some(holding) = &self.holding else { return true };
        let privileged = self.is_holder(nexus) || (holding.kind.registrants() && self.key_of(nexus).is_some());
        privileged
            || match access.under_persistent(cdb) {
                Allowed::Always => true,
                Allowed::Reading => holding.kind.lets_read(),
                Allowed::Never => false,
            }
    }
}

/// What a reservation of somebody else lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    Always,
    /// Only if others may read.
    Reading,
    Never,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// Holder of a reservation of SPC-2, by its session.
    legacy: Option<u16>,
}

/// All reservations of one unit.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    inner: Mutex<Inner>,
    /// Something is reserved: without it nobody needs the lock.
    reserved: AtomicBool,
}

impl Reservations {
    /// Whether the command may run for the nexus.
    pub(crate) fn allow(&self, nexus: &Nexus, access: Access, cdb: &[u8; 16]) -> bool {
        if !self.reserved.load(Ordering::Acquire) {
            return true;
        }
        let inner = self.inner.lock();
        if let Some(holder) = inner.legacy
            && holder != nexus.tsih
            && !access.under_legacy(cdb)
        {
            return false;
        }
        inner.state.allows(nexus, access, cdb)
    }

    fn publish(&self, inner: &Inner) {
        self.reserved.store(inner.legacy.is_some() || inner.state.holding.is_some(), Ordering::Release);
    }

    pub(crate) fn nexus_lost(&self, tsih: u16) {
        let mut inner = self.inner.lock();
        if inner.legacy == Some(tsih) {
            inner.legacy = None;
            self.publish(&inner);
        }
    }

    /// A reset: persistent reservations stay.
    pub(crate) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.legacy = None;
        self.publish(&inner);
    }

    /// Takes back what survived a restart.
    pub(crate) fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let state = persist::decode(bytes)?;
        let mut inner = self.inner.lock();
        inner.state = state;
        self.publish(&inner);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> State {
        self.inner.lock().state.clone()
    }
}

/// The TransportID of a nexus.
#[cfg(test)]
pub(crate) fn transport_id(nexus: &Nexus) -> Vec<u8> {
    transport::encode(&PortPair::of(nexus))
}
