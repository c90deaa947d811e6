//! Data-In and SCSI Response (RFC 7143 11.4, 11.7): how the end of a command is told.

use std::sync::Arc;
use std::time::Duration;

use super::conn::Conn;
use super::task::Head;
use super::tx::{Data, Source};
use crate::pdu::build::{self, Residual};
use crate::scsi::Response;
use crate::service::counters::Counters;

/// Beyond this, answers leave before all commands at hand are carried out, so that the initiator is not idle meanwhile.
const EARLY_BYTES: usize = 256 << 10;
/// And after this time for the same reason: else initiator and target would work in turn, never at once.
const EARLY_TIME: Duration = Duration::from_micros(100);

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;

/// Additional sense codes of RFC 7143 11.4.7.2.
pub(crate) const UNEXPECTED_DATA: (u8, u8) = (0x0c, 0x0c);
pub(crate) const INCORRECT_AMOUNT: (u8, u8) = (0x0c, 0x0d);
pub(crate) const PROTOCOL_SERVICE_CRC: (u8, u8) = (0x47, 0x05);

/// CHECK CONDITION with fixed format sense data.
pub(crate) fn check_condition(sense_key: u8, code: (u8, u8)) -> Response {
    let mut sense = vec![0; 18];
    sense[0] = 0x70;
    sense[2] = sense_key;
    sense[7] = 10;
    sense[12] = code.0;
    sense[13] = code.1;
    Response { status: CHECK_CONDITION, sense, ..Response::default() }
}

/// ABORTED COMMAND.
pub(crate) fn aborted(code: (u8, u8)) -> Response {
    check_condition(0x0b, code)
}

/// Whether an answer counts as an error: a unit attention is news, not one.
fn is_error(response: &Response) -> bool {
    let sense_key = match response.sense.first().map(|b| b & 0x7f) {
        Some(0x72 | 0x73) => response.sense.get(1),
        _ => response.sense.get(2),
    };
    match response.status {
        GOOD | 4 => false,
        CHECK_CONDITION => sense_key.is_none_or(|key| key & 0x0f != 6),
        _ => true,
    }
}

impl Conn {
    pub(crate) fn counters_of(&mut self, head: &Head) -> &Counters {
        let known = self.counters.take().filter(|(lun, _)| *lun == head.lun);
        let of = known.unwrap_or_else(|| {
            let counters = self.session.as_ref().map(|s| s.counters.of(head.lun)).unwrap_or_default();
            (head.lun, counters)
        });
        &self.counters.insert(of).1
    }

    /// A command leaves the books.
    pub(crate) fn abandon(&mut self, head: &Head) {
        self.order.done(head.serial);
        let count = if head.immediate { &mut self.immediate_outstanding } else { &mut self.outstanding };
        *count = count.saturating_sub(1);
    }

    /// Sends data-in and status of a command.
    pub(crate) fn respond(&mut self, head: &Head, response: Response) {
        self.answer(head, response);
        let oldest = *self.unsent_since.get_or_insert(self.now);
        if self.out.bytes() >= EARLY_BYTES || self.now.saturating_duration_since(oldest) >= EARLY_TIME {
            // An error comes up again where the rest is sent.
            if self.out.send(&self.socket).is_ok_and(|bytes| bytes > 0) {
                self.blocked_since = None;
            }
            self.unsent_since = None;
        }
    }

    fn answer(&mut self, head: &Head, response: Response) {
        self.abandon(head);
        let limit = head.read_bytes();
        let lent: usize = response.lent.iter().map(|part| part.bytes().len()).sum();
        let all_in = response.data_in.len() + lent;
        let moved_in = all_in as u64;
        let sent = all_in.min(limit as usize);
        let moved = if head.writes { response.data_out_bytes.min(u64::from(head.expected)) } else { sent as u64 };
        let (failed, time) = (is_error(&response), self.now.saturating_duration_since(head.began));
        self.counters_of(head).done(head.direction(), moved, failed, time);

        let (residual, read_residual) = if head.writes {
            let read = head.reads.then(|| Residual::between(u64::from(limit), moved_in));
            (Residual::between(u64::from(head.expected), response.data_out_bytes), read)
        } else {
            // A write whose initiator expects no data at all moves its bytes the other way.
            let moved = if all_in == 0 && !head.reads { response.data_out_bytes } else { moved_in };
            (Residual::between(u64::from(head.expected), moved), None)
        };
        let collapse = sent > 0 && response.status == GOOD && response.sense.is_empty() && !head.writes;
        let data = Source { own: Arc::new(response.data_in), lent: response.lent };
        let data_ins = self.data_in(head, &data, sent, collapse.then_some((response.status, residual)));
        if collapse {
            return;
        }
        let numbers = self.numbered();
        let counted = data_ins.wrapping_add(head.r2ts);
        let mut data = Vec::new();
        if let Ok(length) = u16::try_from(response.sense.len())
            && length > 0
        {
            data.extend_from_slice(&length.to_be_bytes());
            data.extend_from_slice(&response.sense);
        }
        let header =
            build::scsi_response(head.task_tag, response.status, residual, read_residual, counted, data.len(), numbers);
        self.out.push(&header, Data::Borrowed(&data));
    }

    /// Sends the first `sent` bytes; the last PDU has the status, if that is given. Returns the number of PDUs.
    fn data_in(&mut self, head: &Head, data: &Source, sent: usize, status: Option<(u8, Residual)>) -> u32 {
        let segment = self.agreed.max_send_bytes as usize;
        let burst = self.agreed.max_burst_bytes as usize;
        let (mut at, mut in_burst, mut count) = (0, 0, 0u32);
        while at < sent {
            let bytes = segment.min(sent - at).min(burst - in_burst);
            let last = at + bytes == sent;
            in_burst += bytes;
            let burst_ends = last || in_burst == burst;
            if burst_ends {
                in_burst = 0;
            }
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            let header = match status {
                Some((status, residual)) if last => {
                    let numbers = self.numbered();
                    build::data_in_status(head.task_tag, count, offset, bytes, status, residual, numbers)
                }
                _ => {
                    let numbers = self.numbers();
                    build::data_in(head.task_tag, burst_ends, count, offset, bytes, numbers)
                }
            };
            self.out.push(&header, Data::From(data, at, at + bytes));
            at += bytes;
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_no_error() {
        assert!(!is_error(&Response::default()));
        assert!(!is_error(&check_condition(6, (0x29, 0))));
        assert!(is_error(&aborted(UNEXPECTED_DATA)));
        assert!(is_error(&Response { status: 0x18, ..Response::default() }));
        let descriptor = Response { status: 2, sense: vec![0x72, 6, 0x29, 0, 0, 0, 0, 0], ..Response::default() };
        assert!(!is_error(&descriptor));
    }
}
