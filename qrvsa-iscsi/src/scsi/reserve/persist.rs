//! Registrations and reservation as bytes, for [`Persistence`](crate::scsi::Persistence): a text of lines, so that it can be read by people.

use std::fmt::Write as _;

use super::{Holding, Kind, PortPair, REGISTRATIONS_MAX, Registration, State};

const HEADER: &str = "qrvsa-reservations 1";

fn port_text(port: &PortPair) -> String {
    let isid: String = port.isid.iter().map(|b| format!("{b:02x}")).collect();
    format!("{} {isid} {}", port.group, port.initiator)
}

pub(crate) fn encode(state: &State) -> Vec<u8> {
    let mut out = format!("{HEADER}\ngeneration {}\n", state.generation);
    for r in &state.registrations {
        let _ = writeln!(out, "key {:016x} {} {}", r.key, u8::from(r.all_ports), port_text(&r.port));
    }
    match &state.holding {
        Some(Holding { kind, holder: Some(port) }) => {
            let _ = writeln!(out, "held {} {}", kind.code(), port_text(port));
        }
        Some(Holding { kind, holder: None }) => {
            let _ = writeln!(out, "held {} all", kind.code());
        }
        None => {}
    }
    out.push_str("end\n");
    out.into_bytes()
}

fn port(text: &str) -> Option<PortPair> {
    let mut parts = text.splitn(3, ' ');
    let group = parts.next()?.parse().ok()?;
    let isid = parts.next()?;
    let initiator = parts.next()?.to_owned();
    if isid.len() != 12 || !isid.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let [_, _, isid @ ..] = u64::from_str_radix(isid, 16).ok()?.to_be_bytes();
    Some(PortPair { initiator, isid, group })
}

fn line(state: &mut State, text: &str) -> Option<()> {
    let (word, rest) = text.split_once(' ')?;
    match word {
        "generation" => state.generation = rest.parse().ok()?,
        "key" => {
            let mut parts = rest.splitn(3, ' ');
            let key = u64::from_str_radix(parts.next()?, 16).ok()?;
            let all_ports = parts.next()? == "1";
            state.registrations.push(Registration { port: port(parts.next()?)?, key, all_ports });
        }
        "held" => {
            let (code, who) = rest.split_once(' ')?;
            let kind = Kind::from_code(code.parse().ok()?)?;
            let holder = if kind.all() { None } else { Some(port(who)?) };
            state.holding = Some(Holding { kind, holder });
        }
        _ => return None,
    }
    Some(())
}

/// The state that was stored; empty bytes are no reservations.
pub(crate) fn decode(bytes: &[u8]) -> Result<State, String> {
    let mut state = State::default();
    if bytes.is_empty() {
        return Ok(state);
    }
    let bad = |what: &str| format!("stored reservations are damaged: {what}; delete them to go on without");
    let text = std::str::from_utf8(bytes).map_err(|_| bad("not text"))?;
    let body = text.strip_prefix(HEADER).and_then(|t| t.strip_suffix("end\n")).ok_or_else(|| bad("cut short"))?;
    for text in body.lines().filter(|l| !l.is_empty()) {
        line(&mut state, text).ok_or_else(|| bad(text))?;
        if state.registrations.len() > REGISTRATIONS_MAX {
            return Err(bad("too many registrations"));
        }
    }
    if let Some(Holding { holder: Some(holder), .. }) = &state.holding
        && !state.registrations.iter().any(|r| r.port == *holder)
    {
        return Err(bad("the holder is not registered"));
    }
    state.aptpl = true;
    Ok(state)
}
