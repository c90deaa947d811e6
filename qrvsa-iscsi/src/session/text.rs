//! Text requests (RFC 7143 11.10, 11.11) in the full feature phase: SendTargets, and what may be declared anew.

use super::conn::Conn;
use super::tx::Data;
use crate::pdu::text;
use crate::pdu::{Bhs, NO_TAG, RejectReason, build};

/// Longest text request, over all its PDUs, in bytes.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Longest answer that waits to be fetched, in bytes: room for thousands of targets.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A negotiation under way.
#[derive(Default)]
pub(crate) struct TextState {
    coming: Vec<u8>,
    going: Vec<u8>,
    transfer_tag: Option<u32>,
}

impl Conn {
    pub(crate) fn text_request(&mut self, bhs: &Bhs, data: &[u8]) {
        let (last, more) = (bhs.is_final(), bhs.flags() & 0x40 != 0);
        let tag = bhs.word20();
        if tag == NO_TAG {
            self.text = TextState::default(); // a new one, which ends an old one
        } else if self.text.transfer_tag != Some(tag) {
            self.reject(bhs, RejectReason::InvalidField);
            return;
        }
        if (last && more) || self.text.coming.len() + data.len() > TEXT_BYTES_MAX {
            self.text = TextState::default();
            self.reject(bhs, RejectReason::Protocol);
            return;
        }
        self.text.coming.extend_from_slice(data);
        if more {
            self.text_response(bhs, false);
            return;
        }
        let Some(pairs) = text::parse(&std::mem::take(&mut self.text.coming)) else {
            self.text = TextState::default();
            self.reject(bhs, RejectReason::Protocol);
            return;
        };
        let mut out = std::mem::take(&mut self.text.going);
        for (key, value) in &pairs {
            if out.len() > ANSWER_BYTES_MAX {
                self.text = TextState::default();
                self.reject(bhs, RejectReason::Protocol);
                return;
            }
            match key.as_str() {
                "SendTargets" => self.send_targets(value, &mut out),
                "MaxRecvDataSegmentLength" => {
                    match text::number(value).and_then(|v| u32::try_from(v).ok()).filter(|v| (512..1 << 24).contains(v))
                    {
                        Some(bytes) => self.agreed.max_send_bytes = bytes,
                        None => text::push(&mut out, key, "Reject"),
                    }
                }
                "InitiatorAlias" => {}
                "HeaderDigest"
                | "DataDigest"
                | "MaxConnections"
                | "InitialR2T"
                | "ImmediateData"
                | "MaxBurstLength"
                | "FirstBurstLength"
                | "DefaultTime2Wait"
                | "DefaultTime2Retain"
                | "MaxOutstandingR2T"
                | "DataPDUInOrder"
                | "DataSequenceInOrder"
                | "ErrorRecoveryLevel"
                | "SessionType"
                | "InitiatorName"
                | "TargetName"
                | "TargetAlias"
                | "TargetAddress"
                | "TargetPortalGroupTag"
                | "IFMarker"
                | "OFMarker"
                | "IFMarkInt"
                | "OFMarkInt"
                | "TaskReporting"
                | "iSCSIProtocolLevel"
                | "AuthMethod" => {
                    text::push(&mut out, key, "Reject");
                }
                _ => text::push(&mut out, key, "NotUnderstood"),
            }
        }
        self.text.going = out;
        self.text_response(bhs, last);
    }

    /// Sends the next piece of what there is to say.
    fn text_response(&mut self, bhs: &Bhs, last: bool) {
        let room = (self.agreed.max_send_bytes as usize).min(64 << 10);
        let rest = self.text.going.split_off(self.text.going.len().min(room));
        let piece = std::mem::replace(&mut self.text.going, rest);
        let more = !self.text.going.is_empty();
        let done = last && !more;
        let flags = u8::from(done) << 7 | u8::from(more) << 6;
        let tag = if done { NO_TAG } else { self.transfer_tag() };
        self.text.transfer_tag = (!done).then_some(tag);
        let numbers = self.numbered();
        let header = build::text(flags, bhs.lun(), bhs.task_tag(), tag, piece.len(), numbers);
        self.out.push(&header, Data::Borrowed(&piece));
    }

    /// Appendix C: `All` in discovery sessions, nothing (this target) in others, a name in both.
    fn send_targets(&self, value: &str, out: &mut Vec<u8>) {
        let own = self.session.as_ref().map(|s| s.target.config());
        let list = match (value, &own) {
            ("All", None) => self.service.visible_targets(&self.initiator_name, self.peer.ip(), self.portal.address),
            ("", Some(own)) => vec![std::sync::Arc::clone(own)],
            ("All", Some(_)) | ("", None) => return text::push(out, "SendTargets", "Reject"),
            (name, _) => {
                let mut list = self.service.visible_targets(&self.initiator_name, self.peer.ip(), self.portal.address);
                list.retain(|t| t.name.as_str().eq_ignore_ascii_case(name));
                list
            }
        };
        for target in list {
            text::push(out, "TargetName", target.name.as_str());
            for address in self.service.addresses_of(&target, self.local, self.portal.group_tag) {
                text::push(out, "TargetAddress", &address);
            }
        }
    }
}
