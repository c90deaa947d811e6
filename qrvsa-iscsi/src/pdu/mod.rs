//! PDUs (RFC 7143 11): headers, framing, digests, text. Pure functions, total on any bytes.

pub mod ahs;
pub mod build;
pub mod frame;
pub mod text;

/// Length of the basic header segment in bytes.
pub const BHS_BYTES: usize = 48;

/// A tag that names nothing.
pub const NO_TAG: u32 = 0xffff_ffff;

/// Opcodes of initiators (RFC 7143 11.2.1.2).
pub mod request {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// SCSI Task Management Function Request.
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// Login Request.
    pub const LOGIN: u8 = 0x03;
    /// Text Request.
    pub const TEXT: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT: u8 = 0x06;
    /// SNACK Request.
    pub const SNACK: u8 = 0x10;
}

/// Opcodes of targets (RFC 7143 11.2.1.2).
pub mod response {
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// SCSI Task Management Function Response.
    pub const TASK_MANAGEMENT: u8 = 0x22;
    /// Login Response.
    pub const LOGIN: u8 = 0x23;
    /// Text Response.
    pub const TEXT: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    pub const ASYNC_MESSAGE: u8 = 0x32;
    /// Reject.
    pub const REJECT: u8 = 0x3f;
}

/// Reasons of Reject (RFC 7143 11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// The data digest does not fit.
    DataDigest = 0x02,
    /// SNACK is not supported.
    Snack = 0x03,
    /// Protocol error.
    Protocol = 0x04,
    /// The command is not supported.
    NotSupported = 0x05,
    /// Too many immediate commands.
    TooManyImmediate = 0x06,
    /// The tag is in use.
    TaskInProgress = 0x07,
    /// A field makes no sense.
    InvalidField = 0x09,
    /// The connection waits for logout.
    WaitingForLogout = 0x0c,
}

/// A basic header segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_BYTES]);

impl std::fmt::Debug for Bhs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bhs(opcode {:#04x}, flags {:#04x}, tag {:#010x})", self.opcode(), self.flags(), self.task_tag())
    }
}

macro_rules! be32 {
    ($self:ident, $at:literal) => {
        u32::from_be_bytes([$self.0[$at], $self.0[$at + 1], $self.0[$at + 2], $self.0[$at + 3]])
    };
}

impl Bhs {
    /// Opcode without the immediate bit.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// The immediate bit.
    #[must_use]
    pub fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// Byte 1, whose meaning depends on the opcode.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// The final bit.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.0[1] & 0x80 != 0
    }

    /// Length of the additional header segments in bytes.
    #[must_use]
    pub fn ahs_bytes(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Length of the data segment in bytes, without padding and digest.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    /// LUN field.
    #[must_use]
    pub fn lun(&self) -> [u8; 8] {
        [self.0[8], self.0[9], self.0[10], self.0[11], self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// Initiator session identifier (login).
    #[must_use]
    pub fn isid(&self) -> [u8; 6] {
        [self.0[8], self.0[9], self.0[10], self.0[11], self.0[12], self.0[13]]
    }

    /// Target session identifying handle (login).
    #[must_use]
    pub fn tsih(&self) -> u16 {
        u16::from_be_bytes([self.0[14], self.0[15]])
    }

    /// Initiator task tag.
    #[must_use]
    pub fn task_tag(&self) -> u32 {
        be32!(self, 16)
    }

    /// Connection identifier (login, logout).
    #[must_use]
    pub fn cid(&self) -> u16 {
        u16::from_be_bytes([self.0[20], self.0[21]])
    }

    /// Bytes 20 to 23: target transfer tag, expected data transfer length or referenced task tag.
    #[must_use]
    pub fn word20(&self) -> u32 {
        be32!(self, 20)
    }

    /// CmdSN.
    #[must_use]
    pub fn cmd_sn(&self) -> u32 {
        be32!(self, 24)
    }

    /// ExpStatSN.
    #[must_use]
    pub fn exp_stat_sn(&self) -> u32 {
        be32!(self, 28)
    }

    /// Bytes 32 to 35: RefCmdSN.
    #[must_use]
    pub fn word32(&self) -> u32 {
        be32!(self, 32)
    }

    /// Bytes 36 to 39: DataSN.
    #[must_use]
    pub fn data_sn(&self) -> u32 {
        be32!(self, 36)
    }

    /// Bytes 40 to 43: buffer offset.
    #[must_use]
    pub fn buffer_offset(&self) -> u32 {
        be32!(self, 40)
    }

    /// The 16 bytes of the CDB that fit in the header.
    #[must_use]
    pub fn cdb(&self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&self.0[32..48]);
        cdb
    }
}

/// `a < b` in serial number arithmetic (RFC 1982, 32 bits).
#[must_use]
pub fn serial_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 0x8000_0000
}

/// Length with padding to a whole word.
#[must_use]
pub fn padded(bytes: usize) -> usize {
    bytes.saturating_add(3) & !3
}

/// The digest of RFC 7143 12.1, as it goes over the wire.
#[must_use]
pub fn digest(parts: &[&[u8]]) -> [u8; 4] {
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        crc.update(part);
    }
    u32::try_from(crc.finalize()).unwrap_or(0).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_the_rfc() {
        // RFC 7143 appendix A.4 (B.4 of RFC 3720): 32 bytes of zeroes, of ones, ascending.
        assert_eq!(digest(&[&[0; 32]]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[&[0xff; 16], &[0xff; 16]]), [0x43, 0xab, 0xa8, 0x62]);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&[&ascending]), [0x4e, 0x79, 0xdd, 0x46]);
    }

    #[test]
    fn serial_numbers_wrap() {
        assert!(serial_before(1, 2));
        assert!(!serial_before(2, 2));
        assert!(serial_before(u32::MAX, 0));
        assert!(!serial_before(0, u32::MAX));
    }
}
