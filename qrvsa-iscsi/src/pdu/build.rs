//! Headers that a target sends (RFC 7143 11).

use super::{BHS_BYTES, Bhs, NO_TAG, RejectReason, response};

/// Sequence numbers of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// StatSN.
    pub stat_sn: u32,
    /// ExpCmdSN.
    pub exp_cmd_sn: u32,
    /// MaxCmdSN.
    pub max_cmd_sn: u32,
}

/// Residual count and its two flags, for one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residual {
    /// More data than expected by the initiator.
    pub overflow: bool,
    /// Less.
    pub underflow: bool,
    /// The difference, bytes.
    pub count: u32,
}

impl Residual {
    /// From what the initiator expects, and what the command moves.
    #[must_use]
    pub fn between(expected: u64, moved: u64) -> Residual {
        let count = u32::try_from(expected.abs_diff(moved)).unwrap_or(u32::MAX);
        Residual { overflow: moved > expected, underflow: moved < expected, count }
    }

    /// The bits of byte 1 of SCSI Response and Data-In.
    fn flags(self) -> u8 {
        u8::from(self.overflow) << 2 | u8::from(self.underflow) << 1
    }
}

/// A header under construction.
struct Draft([u8; BHS_BYTES]);

impl Draft {
    fn new(opcode: u8, flags: u8, task_tag: u32, numbers: Numbers) -> Draft {
        let mut bytes = [0; BHS_BYTES];
        bytes[0] = opcode;
        bytes[1] = flags;
        let mut draft = Draft(bytes);
        draft.word::<16>(task_tag);
        draft.word::<24>(numbers.stat_sn);
        draft.word::<28>(numbers.exp_cmd_sn);
        draft.word::<32>(numbers.max_cmd_sn);
        draft
    }

    fn word<const AT: usize>(&mut self, value: u32) {
        self.0[AT..AT + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn lun(&mut self, lun: [u8; 8]) {
        self.0[8..16].copy_from_slice(&lun);
    }

    fn length(&mut self, data_bytes: usize) {
        let length = u32::try_from(data_bytes).unwrap_or(u32::MAX).min(0x00ff_ffff).to_be_bytes();
        self.0[5..8].copy_from_slice(&length[1..]);
    }
}

/// NOP-In. A ping has a target transfer tag and no task tag.
#[must_use]
pub fn nop_in(task_tag: u32, transfer_tag: u32, lun: [u8; 8], data_bytes: usize, numbers: Numbers) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::NOP_IN, 0x80, task_tag, numbers);
    draft.word::<20>(transfer_tag);
    draft.lun(lun);
    draft.length(data_bytes);
    draft.0
}

/// SCSI Response. `data_bytes` counts the sense data with its length field; `sent` is the number of R2T and Data-In PDUs.
#[must_use]
pub fn scsi_response(
    task_tag: u32,
    status: u8,
    residual: Residual,
    read_residual: Option<Residual>,
    sent: u32,
    data_bytes: usize,
    numbers: Numbers,
) -> [u8; BHS_BYTES] {
    let read = read_residual.unwrap_or_default();
    let mut draft = Draft::new(response::SCSI_RESPONSE, 0x80 | residual.flags() | read.flags() << 2, task_tag, numbers);
    draft.0[3] = status;
    draft.length(data_bytes);
    draft.word::<36>(sent);
    draft.word::<40>(read.count);
    draft.word::<44>(residual.count);
    draft.0
}

/// SCSI Data-In without status.
#[must_use]
pub fn data_in(
    task_tag: u32,
    last: bool,
    data_sn: u32,
    offset: u32,
    bytes: usize,
    numbers: Numbers,
) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::DATA_IN, if last { 0x80 } else { 0 }, task_tag, numbers);
    draft.word::<24>(0);
    draft.word::<20>(NO_TAG);
    draft.length(bytes);
    draft.word::<36>(data_sn);
    draft.word::<40>(offset);
    draft.0
}

/// The last SCSI Data-In of a command, with its status.
#[must_use]
pub fn data_in_status(
    task_tag: u32,
    data_sn: u32,
    offset: u32,
    bytes: usize,
    status: u8,
    residual: Residual,
    numbers: Numbers,
) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::DATA_IN, 0x81 | residual.flags(), task_tag, numbers);
    draft.word::<20>(NO_TAG);
    draft.0[3] = status;
    draft.length(bytes);
    draft.word::<36>(data_sn);
    draft.word::<40>(offset);
    draft.word::<44>(residual.count);
    draft.0
}

/// Ready To Transfer.
#[must_use]
pub fn r2t(
    task_tag: u32,
    transfer_tag: u32,
    lun: [u8; 8],
    r2t_sn: u32,
    offset: u32,
    bytes: u32,
    numbers: Numbers,
) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::R2T, 0x80, task_tag, numbers);
    draft.lun(lun);
    draft.word::<20>(transfer_tag);
    draft.word::<36>(r2t_sn);
    draft.word::<40>(offset);
    draft.word::<44>(bytes);
    draft.0
}

/// SCSI Task Management Function Response.
#[must_use]
pub fn task_management(task_tag: u32, answer: u8, numbers: Numbers) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::TASK_MANAGEMENT, 0x80, task_tag, numbers);
    draft.0[2] = answer;
    draft.0
}

/// Text Response. `flags` holds the final and continue bits.
#[must_use]
pub fn text(
    flags: u8,
    lun: [u8; 8],
    task_tag: u32,
    transfer_tag: u32,
    data_bytes: usize,
    numbers: Numbers,
) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::TEXT, flags, task_tag, numbers);
    draft.lun(lun);
    draft.word::<20>(transfer_tag);
    draft.length(data_bytes);
    draft.0
}

/// Login Response to a request. `flags` is byte 1.
#[must_use]
pub fn login(request: &Bhs, flags: u8, tsih: u16, status: u16, data_bytes: usize, numbers: Numbers) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::LOGIN, flags, request.task_tag(), numbers);
    draft.0[8..14].copy_from_slice(&request.isid());
    draft.0[14..16].copy_from_slice(&tsih.to_be_bytes());
    draft.0[36..38].copy_from_slice(&status.to_be_bytes());
    draft.length(data_bytes);
    draft.0
}

/// Logout Response.
#[must_use]
pub fn logout(task_tag: u32, answer: u8, wait: u16, retain: u16, numbers: Numbers) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::LOGOUT, 0x80, task_tag, numbers);
    draft.0[2] = answer;
    draft.0[40..42].copy_from_slice(&wait.to_be_bytes());
    draft.0[42..44].copy_from_slice(&retain.to_be_bytes());
    draft.0
}

/// Asynchronous Message.
#[must_use]
pub fn async_message(
    lun: [u8; 8],
    event: u8,
    parameters: [u16; 3],
    data_bytes: usize,
    numbers: Numbers,
) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::ASYNC_MESSAGE, 0x80, NO_TAG, numbers);
    draft.lun(lun);
    draft.0[36] = event;
    for (at, parameter) in [38, 40, 42].into_iter().zip(parameters) {
        draft.0[at..at + 2].copy_from_slice(&parameter.to_be_bytes());
    }
    draft.length(data_bytes);
    draft.0
}

/// Reject of a PDU whose header goes into the data segment.
#[must_use]
pub fn reject(reason: RejectReason, numbers: Numbers) -> [u8; BHS_BYTES] {
    let mut draft = Draft::new(response::REJECT, 0x80, NO_TAG, numbers);
    draft.0[2] = reason as u8;
    draft.length(BHS_BYTES);
    draft.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_rfc_has_them() {
        let numbers = Numbers { stat_sn: 1, exp_cmd_sn: 2, max_cmd_sn: 3 };
        let bytes = scsi_response(7, 2, Residual::between(10, 4), None, 9, 20, numbers);
        assert_eq!(bytes[..8], [0x21, 0x82, 0, 2, 0, 0, 0, 20]);
        assert_eq!(bytes[16..20], [0, 0, 0, 7]);
        assert_eq!(bytes[24..48], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 6]);
        let bytes = data_in_status(7, 1, 512, 100, 0, Residual::between(4, 10), numbers);
        assert_eq!(bytes[..8], [0x25, 0x85, 0, 0, 0, 0, 0, 100]);
        assert_eq!(bytes[36..48], [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 6]);
        assert_eq!(reject(RejectReason::Protocol, numbers)[..8], [0x3f, 0x80, 4, 0, 0, 0, 0, 48]);
        let bytes = async_message([0; 8], 1, [0, 0, 5], 0, numbers);
        assert_eq!(bytes[36..44], [1, 0, 0, 0, 0, 0, 0, 5]);
    }
}
