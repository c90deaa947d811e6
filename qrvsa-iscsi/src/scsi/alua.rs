//! Asymmetric access to units (SPC-4 5.15): target port groups and their states.

use super::attention::Attention;
use super::bytes::{be16, be32, byte, len32};
use super::call::{Call, Outcome, Refusal};
use super::sense::Sense;
use super::table::Access;

/// Access state of a target port group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessState {
    /// All commands, at full speed.
    ActiveOptimized,
    /// All commands, perhaps slower.
    ActiveNonOptimized,
    /// Inquiries and reservations only.
    Standby,
    /// Inquiries only.
    Unavailable,
}

impl AccessState {
    const fn code(self) -> u8 {
        match self {
            Self::ActiveOptimized => 0,
            Self::ActiveNonOptimized => 1,
            Self::Standby => 2,
            Self::Unavailable => 3,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::ActiveOptimized,
            1 => Self::ActiveNonOptimized,
            2 => Self::Standby,
            3 => Self::Unavailable,
            _ => return None,
        })
    }
}

/// A target port group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGroup {
    /// Identifier; not 0.
    pub id: u16,
    /// Its state.
    pub state: AccessState,
    /// Whether initiators should prefer it.
    pub preferred: bool,
    /// Portal group tags in it.
    pub ports: Vec<u16>,
}

/// Target port groups of a target. Without any, all ports are in group 1, active and optimised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alua {
    /// Initiators may change states (SET TARGET PORT GROUPS).
    pub explicit: bool,
    /// The groups.
    pub groups: Vec<PortGroup>,
}

const DEFAULT_GROUP: u16 = 1;

impl Alua {
    /// The group that a port is in.
    pub(crate) fn group_of(&self, port: u16) -> u16 {
        self.groups.iter().find(|g| g.ports.contains(&port)).map_or(DEFAULT_GROUP, |g| g.id)
    }

    fn state_of(&self, port: u16) -> AccessState {
        self.groups.iter().find(|g| g.ports.contains(&port)).map_or(AccessState::ActiveOptimized, |g| g.state)
    }

    /// Whether a command may run through this port.
    pub(crate) fn check(&self, port: u16, access: Access) -> Result<(), Refusal> {
        if self.groups.is_empty() {
            return Ok(());
        }
        match self.state_of(port) {
            AccessState::ActiveOptimized | AccessState::ActiveNonOptimized => Ok(()),
            AccessState::Standby if access.in_standby() => Ok(()),
            AccessState::Unavailable if access.in_unavailable() => Ok(()),
            AccessState::Standby => Err(Sense::new(2, 0x04, 0x0b).into()),
            AccessState::Unavailable => Err(Sense::new(2, 0x04, 0x0c).into()),
        }
    }
}

/// REPORT TARGET PORT GROUPS, with the short or the extended header.
pub(crate) fn report(call: &Call) -> Outcome {
    let extended = match call.cdb[1] >> 5 {
        0 => false,
        1 => true,
        _ => return Err(Sense::cdb_field(1, 7).into()),
    };
    let alua = call.units.alua();
    let ports = call.units.ports();
    let mut groups = alua.groups.clone();
    let rest: Vec<u16> = ports.into_iter().filter(|p| !groups.iter().any(|g| g.ports.contains(p))).collect();
    if !rest.is_empty() {
        groups.push(PortGroup {
            id: DEFAULT_GROUP,
            state: AccessState::ActiveOptimized,
            preferred: false,
            ports: rest,
        });
    }
    let mut body = if extended { vec![0x10, 0, 0, 0] } else { Vec::new() };
    for group in &groups {
        body.push(if group.preferred { 0x80 } else { 0 } | group.state.code());
        // active, non-optimised, standby and unavailable are supported
        body.push(0x0f);
        body.extend(group.id.to_be_bytes());
        body.extend([0, if alua.explicit { 1 } else { 0 }, 0]);
        body.push(u8::try_from(group.ports.len()).unwrap_or(u8::MAX));
        for port in group.ports.iter().take(255) {
            body.extend([0, 0]);
            body.extend(port.to_be_bytes());
        }
    }
    let mut out = len32(body.len()).to_vec();
    out.extend(body);
    out.truncate(usize::try_from(be32(call.cdb, 6)).unwrap_or(usize::MAX));
    Ok(out)
}

/// SET TARGET PORT GROUPS: all descriptors are checked before the first counts.
pub(crate) fn set(call: &Call) -> Outcome {
    let length = usize::try_from(be32(call.cdb, 6)).unwrap_or(usize::MAX);
    let list = call.data.get(..length).unwrap_or(call.data);
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let mut alua = (*call.units.alua()).clone();
    if !alua.explicit {
        return Err(Sense::INVALID_OPCODE.into());
    }
    let descriptors = list.get(4..).unwrap_or_default();
    if list.len() < 4 || !descriptors.len().is_multiple_of(4) {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    for (n, descriptor) in descriptors.chunks_exact(4).enumerate() {
        let at = 4 + n * 4;
        let state = AccessState::from_code(byte(descriptor, 0) & 0x0f).ok_or_else(|| Sense::parameter_field(at))?;
        let id = be16(descriptor, 2);
        let group = alua.groups.iter_mut().find(|g| g.id == id).ok_or_else(|| Sense::parameter_field(at + 2))?;
        group.state = state;
    }
    call.units.set_alua(alua);
    call.units.attend_all(Attention::ACCESS_STATE_CHANGED, Some(call.nexus));
    Ok(Vec::new())
}
