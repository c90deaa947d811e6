//! PERSISTENT RESERVE OUT (SPC-4 6.16), RESERVE and RELEASE (SPC-2 7.21, with the compatibility rules of SPC-3 5.6.3).
//!
//! Each service action changes a copy of the state; the copy is made durable if it has to survive, and takes the place of the state last.

use std::sync::Arc;
use std::time::Duration;

use super::transport::{self, Initiator};
use super::{Holding, Kind, PortPair, REGISTRATIONS_MAX, Registration, State, persist};
use crate::scsi::attention::Attention;
use crate::scsi::bytes::{be16, be32, be64, byte};
use crate::scsi::call::{Call, Outcome, Refusal};
use crate::scsi::sense::{RESERVATION_CONFLICT, Sense};
use crate::scsi::{Nexus, lun};

const CONFLICT: Refusal = Refusal::Status(RESERVATION_CONFLICT);
/// How long a preemption waits for the commands that it aborts.
const ABORT_PATIENCE: Duration = Duration::from_secs(20);

/// What goes with a change: attentions for ports, tasks to end.
#[derive(Default)]
struct Effects {
    tell: Vec<(PortPair, Attention)>,
    abort: Vec<PortPair>,
}

struct Request<'a> {
    key: u64,
    service_key: u64,
    flags: u8,
    list: &'a [u8],
    kind: Option<Kind>,
}

impl Request<'_> {
    fn kind(&self) -> Result<Kind, Refusal> {
        self.kind.ok_or_else(|| Sense::cdb_field(2, 3).into())
    }
}

/// PERSISTENT RESERVE OUT.
pub(crate) fn persistent_out(call: &Call) -> Outcome {
    let action = call.cdb[1] & 0x1f;
    let length = usize::try_from(be32(call.cdb, 5)).unwrap_or(usize::MAX);
    let list = call.data.get(..length).ok_or(Sense::PARAMETER_LENGTH)?;
    let flags = byte(list, 20);
    let spec_i_pt = action == 0 && flags & 0x08 != 0;
    if list.len() < 24 || (list.len() != 24 && action != 7 && !spec_i_pt) {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    if matches!(action, 1 | 2 | 4 | 5 | 7) && call.cdb[2] & 0xf0 != 0 {
        return Err(Sense::cdb_field(2, 7).into());
    }
    let request = Request {
        key: be64(list, 0),
        service_key: be64(list, 8),
        flags,
        list,
        kind: Kind::from_code(call.cdb[2] & 0x0f),
    };
    let mut effects = Effects::default();
    {
        let mut inner = call.unit.reservations.inner.lock();
        if inner.legacy.is_some_and(|holder| holder != call.nexus.tsih) {
            return Err(CONFLICT);
        }
        let mut state = inner.state.clone();
        match action {
            0 | 6 => register(call, &mut state, &request, action == 6, &mut effects)?,
            1 => reserve(call, &mut state, &request)?,
            2 => release(call, &mut state, &request, &mut effects)?,
            3 => clear(call, &mut state, &request, &mut effects)?,
            4 | 5 => preempt(call, &mut state, &request, &mut effects)?,
            7 => register_and_move(call, &mut state, &request, &mut effects)?,
            _ => return Err(Sense::cdb_field(1, 4).into()),
        }
        if matches!(action, 0 | 3..=7) {
            state.generation = state.generation.wrapping_add(1);
        }
        keep(call, &inner.state, &state)?;
        inner.state = state;
        call.unit.reservations.publish(&inner);
    }
    for (port, attention) in &effects.tell {
        call.unit.attend(*attention, |nexus| port.is(nexus) && nexus.tsih != call.nexus.tsih);
    }
    if action == 5 && !effects.abort.is_empty() {
        abort(call, &effects.abort);
    }
    Ok(Vec::new())
}

/// Makes the new state durable if it, or the old one, has to survive.
fn keep(call: &Call, old: &State, new: &State) -> Result<(), Refusal> {
    if !(old.aptpl || new.aptpl) || old == new {
        return Ok(());
    }
    let bytes = if new.aptpl { persist::encode(new) } else { Vec::new() };
    call.units.save_reservations(call.unit.lun, &bytes).map_err(|text| {
        tracing::error!("reservations of LUN {} cannot be stored: {text}", call.unit.lun);
        Sense::new(5, 0x55, 0x04).into()
    })
}

fn abort(call: &Call, ports: &[PortPair]) {
    let victims: Vec<Arc<Nexus>> = call.unit.live(|nexus| ports.iter().any(|port| port.is(nexus)));
    call.units.end_tasks(Some(&victims), Some(lun::encode(call.unit.lun)), Some(call.nexus));
    for victim in victims.iter().filter(|v| v.tsih != call.nexus.tsih) {
        call.unit.set_prevent(victim, false);
    }
    if !call.unit.ranges.drain(ABORT_PATIENCE) {
        tracing::warn!("LUN {}: commands of a preempted initiator are still running", call.unit.lun);
    }
}

/// The registered key of the caller must be the one that it gives.
fn check_key(call: &Call, state: &State, request: &Request) -> Result<(), Refusal> {
    if state.key_of(call.nexus) == Some(request.key) { Ok(()) } else { Err(CONFLICT) }
}

fn me(call: &Call) -> PortPair {
    PortPair::of(call.nexus)
}

/// APTPL as asked for, if it can be kept.
fn set_aptpl(call: &Call, state: &mut State, on: bool) -> Result<(), Refusal> {
    if on && call.units.persistence().is_none() {
        return Err(Sense::parameter_field(20).into());
    }
    state.aptpl = on;
    Ok(())
}

fn register(
    call: &Call,
    state: &mut State,
    request: &Request,
    ignore: bool,
    effects: &mut Effects,
) -> Result<(), Refusal> {
    let (spec_i_pt, all_ports, aptpl) = (request.flags & 8 != 0, request.flags & 4 != 0, request.flags & 1 != 0);
    let mine = state.key_of(call.nexus);
    if !ignore && mine.unwrap_or(0) != request.key {
        return Err(CONFLICT);
    }
    if spec_i_pt && (ignore || mine.is_some()) {
        return Err(Sense::parameter_field(20).into());
    }
    let mut initiators = vec![Initiator { name: call.nexus.initiator_name.clone(), isid: Some(call.nexus.isid) }];
    if spec_i_pt {
        initiators.extend(named_initiators(call, request.list)?);
    }
    set_aptpl(call, state, aptpl)?;
    let groups = if all_ports { call.units.ports() } else { vec![call.nexus.portal_group_tag] };
    for (n, initiator) in initiators.into_iter().enumerate() {
        let isid = initiator.isid.unwrap_or_default();
        for group in &groups {
            let port = PortPair { initiator: initiator.name.clone(), isid, group: *group };
            let known = state.registrations.iter().position(|r| r.port == port);
            match (known, request.service_key) {
                (Some(_), 0) => unregister(state, &port, effects),
                (Some(at), key) if n == 0 => {
                    state.registrations[at].key = key;
                    state.registrations[at].all_ports = all_ports;
                }
                (Some(_), _) => return Err(Sense::parameter_field(24).into()),
                (None, 0) => {}
                (None, key) => {
                    if state.registrations.len() >= REGISTRATIONS_MAX {
                        return Err(Sense::new(5, 0x55, 0x04).into());
                    }
                    state.registrations.push(Registration { port, key, all_ports });
                }
            }
        }
    }
    Ok(())
}

/// The initiators of a SPEC_I_PT list; names without ISID stand for the sessions that are there.
fn named_initiators(call: &Call, list: &[u8]) -> Result<Vec<Initiator>, Refusal> {
    let told = usize::try_from(be32(list, 24)).unwrap_or(usize::MAX);
    if list.len() < 28 || told != list.len() - 28 {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    let mut rest = list.get(28..).unwrap_or_default();
    let mut initiators = Vec::new();
    while !rest.is_empty() {
        let at = list.len() - rest.len();
        let (initiator, length) = transport::decode(rest).ok_or_else(|| Sense::parameter_field(at))?;
        rest = rest.get(length..).unwrap_or_default();
        if initiator.isid.is_some() {
            initiators.push(initiator);
            continue;
        }
        let sessions = call.unit.live(|nexus| nexus.initiator_name == initiator.name);
        if sessions.is_empty() {
            return Err(Sense::parameter_field(at).into());
        }
        for nexus in sessions.iter().filter(|n| n.tsih != call.nexus.tsih) {
            let named = Initiator { name: nexus.initiator_name.clone(), isid: Some(nexus.isid) };
            if !initiators.contains(&named) {
                initiators.push(named);
            }
        }
    }
    Ok(initiators)
}

/// Takes a registration away, and with it what the port holds.
fn unregister(state: &mut State, port: &PortPair, effects: &mut Effects) {
    let held = state.holds(port);
    state.registrations.retain(|r| r.port != *port);
    let Some(holding) = &state.holding else { return };
    if !held || (holding.holder.is_none() && !state.registrations.is_empty()) {
        return;
    }
    if holding.kind.registrants() && !holding.kind.all() {
        tell_registrants(state, Attention::RESERVATIONS_RELEASED, effects);
    }
    state.holding = None;
}

fn tell_registrants(state: &State, attention: Attention, effects: &mut Effects) {
    effects.tell.extend(state.registrations.iter().map(|r| (r.port.clone(), attention)));
}

fn reserve(call: &Call, state: &mut State, request: &Request) -> Result<(), Refusal> {
    let kind = request.kind()?;
    check_key(call, state, request)?;
    match &state.holding {
        None => {
            let holder = if kind.all() { None } else { Some(me(call)) };
            state.holding = Some(Holding { kind, holder });
            Ok(())
        }
        Some(holding) if state.is_holder(call.nexus) && holding.kind == kind => Ok(()),
        Some(_) => Err(CONFLICT),
    }
}

fn release(call: &Call, state: &mut State, request: &Request, effects: &mut Effects) -> Result<(), Refusal> {
    check_key(call, state, request)?;
    let Some(holding) = &state.holding else { return Ok(()) };
    if !state.is_holder(call.nexus) {
        return Ok(());
    }
    if request.kind != Some(holding.kind) {
        return Err(Sense::new(5, 0x26, 0x04).into());
    }
    if holding.kind.registrants() {
        tell_registrants(state, Attention::RESERVATIONS_RELEASED, effects);
    }
    state.holding = None;
    Ok(())
}

fn clear(call: &Call, state: &mut State, request: &Request, effects: &mut Effects) -> Result<(), Refusal> {
    check_key(call, state, request)?;
    tell_registrants(state, Attention::RESERVATIONS_PREEMPTED, effects);
    state.registrations.clear();
    state.holding = None;
    Ok(())
}

fn preempt(call: &Call, state: &mut State, request: &Request, effects: &mut Effects) -> Result<(), Refusal> {
    check_key(call, state, request)?;
    let mine = me(call);
    let held = state.holding.clone();
    let holder_key = held
        .as_ref()
        .and_then(|h| h.holder.as_ref())
        .and_then(|port| state.registrations.iter().find(|r| r.port == *port).map(|r| r.key));
    let all = held.as_ref().is_some_and(|h| h.kind.all());
    if request.service_key == 0 && !all {
        return Err(Sense::parameter_field(8).into());
    }
    let takes_over = if all { request.service_key == 0 } else { holder_key == Some(request.service_key) };
    let kind = if takes_over { Some(request.kind()?) } else { None };

    let goes = |r: &Registration| r.port != mine && (r.key == request.service_key || (all && request.service_key == 0));
    let known = state.registrations.iter().any(|r| r.key == request.service_key);
    if !takes_over && !known {
        return Err(CONFLICT);
    }
    let gone: Vec<PortPair> = state.registrations.iter().filter(|r| goes(r)).map(|r| r.port.clone()).collect();
    state.registrations.retain(|r| !gone.contains(&r.port));
    effects.tell.extend(gone.iter().map(|port| (port.clone(), Attention::REGISTRATIONS_PREEMPTED)));
    effects.abort = gone;
    if let (Some(kind), Some(before)) = (kind, held) {
        if before.kind != kind && before.kind.registrants() {
            tell_registrants(state, Attention::RESERVATIONS_RELEASED, effects);
        }
        state.holding = Some(Holding { kind, holder: if kind.all() { None } else { Some(mine) } });
    }
    Ok(())
}

fn register_and_move(call: &Call, state: &mut State, request: &Request, effects: &mut Effects) -> Result<(), Refusal> {
    let list = request.list;
    let (unregister_me, aptpl) = (byte(list, 17) & 2 != 0, byte(list, 17) & 1 != 0);
    check_key(call, state, request)?;
    let Some(holding) = state.holding.clone() else { return Err(CONFLICT) };
    if holding.kind.all() || !state.is_holder(call.nexus) {
        return Err(CONFLICT);
    }
    if request.service_key == 0 {
        return Err(Sense::parameter_field(8).into());
    }
    if request.kind != Some(holding.kind) {
        return Err(Sense::cdb_field(2, 3).into());
    }
    let told = usize::try_from(be32(list, 20)).unwrap_or(usize::MAX);
    let id = list.get(24..).filter(|id| id.len() == told).ok_or(Sense::PARAMETER_LENGTH)?;
    let (initiator, _) = transport::decode(id).ok_or_else(|| Sense::parameter_field(24))?;
    let group = be16(list, 18);
    if !call.units.ports().contains(&group) {
        return Err(Sense::parameter_field(18).into());
    }
    let isid = initiator.isid.ok_or_else(|| Sense::parameter_field(24))?;
    let to = PortPair { initiator: initiator.name, isid, group };
    if to.is(call.nexus) {
        return Err(Sense::parameter_field(24).into());
    }
    set_aptpl(call, state, aptpl)?;
    match state.registrations.iter().position(|r| r.port == to) {
        Some(at) => state.registrations[at].key = request.service_key,
        None if state.registrations.len() >= REGISTRATIONS_MAX => return Err(Sense::new(5, 0x55, 0x04).into()),
        None => {
            state.registrations.push(Registration { port: to.clone(), key: request.service_key, all_ports: false });
        }
    }
    state.holding = Some(Holding { kind: holding.kind, holder: Some(to) });
    if unregister_me {
        unregister(state, &me(call), effects);
    }
    Ok(())
}

/// RESERVE of 6 and 10 bytes.
pub(crate) fn legacy_reserve(call: &Call) -> Outcome {
    check_legacy(call)?;
    let mut inner = call.unit.reservations.inner.lock();
    if !inner.state.registrations.is_empty() {
        // a registrant keeps what it has by its registration
        return if inner.state.key_of(call.nexus).is_some() { Ok(Vec::new()) } else { Err(CONFLICT) };
    }
    if inner.legacy.is_some_and(|holder| holder != call.nexus.tsih) {
        return Err(CONFLICT);
    }
    inner.legacy = Some(call.nexus.tsih);
    call.unit.reservations.publish(&inner);
    Ok(Vec::new())
}

/// RELEASE of 6 and 10 bytes: of what somebody else holds, nothing happens.
pub(crate) fn legacy_release(call: &Call) -> Outcome {
    check_legacy(call)?;
    let mut inner = call.unit.reservations.inner.lock();
    if !inner.state.registrations.is_empty() {
        return if inner.state.key_of(call.nexus).is_some() { Ok(Vec::new()) } else { Err(CONFLICT) };
    }
    if inner.legacy == Some(call.nexus.tsih) {
        inner.legacy = None;
        call.unit.reservations.publish(&inner);
    }
    Ok(Vec::new())
}

/// Third parties and extents went with SPC-2.
fn check_legacy(call: &Call) -> Result<(), Refusal> {
    if call.cdb[1] & 0x11 != 0 { Err(Sense::cdb_field(1, 4).into()) } else { Ok(()) }
}
