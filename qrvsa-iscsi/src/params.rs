//! What a target offers in negotiations (RFC 7143 13), settable by name at run time as tgt's `--op update --name` does.

/// What digests a target takes part in; which one is used is the initiator's choice by its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestPolicy {
    /// `None` may be chosen.
    pub none: bool,
    /// `CRC32C` may be chosen.
    pub crc32c: bool,
}

/// Offers and limits of one target. Lengths in bytes, times in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// HeaderDigest.
    pub header_digest: DigestPolicy,
    /// DataDigest.
    pub data_digest: DigestPolicy,
    /// InitialR2T: the target insists on R2T before any data-out that is not immediate.
    pub initial_r2t: bool,
    /// ImmediateData is allowed.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength that the target declares.
    pub max_recv_data_segment_length: u32,
    /// Longest data segment that the target sends, whatever the initiator declares.
    pub max_xmit_data_segment_length: u32,
    /// MaxBurstLength.
    pub max_burst_length: u32,
    /// FirstBurstLength.
    pub first_burst_length: u32,
    /// DefaultTime2Wait.
    pub default_time2wait: u16,
    /// DefaultTime2Retain.
    pub default_time2retain: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// Commands that an initiator may have outstanding (MaxCmdSN - ExpCmdSN + 1).
    pub max_queue_cmd: u16,
}

impl Default for Parameters {
    fn default() -> Parameters {
        let any = DigestPolicy { none: true, crc32c: true };
        Parameters {
            header_digest: any,
            data_digest: any,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment_length: 256 << 10,
            max_xmit_data_segment_length: 1 << 20,
            max_burst_length: 1 << 20,
            first_burst_length: 256 << 10,
            default_time2wait: 2,
            default_time2retain: 0,
            max_outstanding_r2t: 16,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            max_queue_cmd: 128,
        }
    }
}

/// Largest data segment: 24 bits of length, a whole number of words.
const SEGMENT_MAX: u32 = 0x00ff_fffc;
/// Largest segment that the target takes, so that a connection's buffer stays small.
const RECV_SEGMENT_MAX: u32 = 1 << 20;
/// Largest burst.
const BURST_MAX: u32 = 0x00ff_ffff;

fn yes_no(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

fn show_digest(policy: DigestPolicy) -> &'static str {
    match (policy.none, policy.crc32c) {
        (true, true) => "CRC32C,None",
        (false, true) => "CRC32C",
        _ => "None",
    }
}

impl Parameters {
    /// Sets a key by its name. Keys whose value is fixed here take that value alone.
    ///
    /// # Errors
    /// In words: an unknown key, or a value it cannot have. Nothing was changed.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |least: u32, most: u32| -> Result<u32, String> {
            value
                .parse::<u32>()
                .ok()
                .filter(|v| (least..=most).contains(v))
                .ok_or_else(|| format!("{name} takes a number from {least} to {most}, not {value:?}"))
        };
        let short =
            |least: u16, most: u16| number(least.into(), most.into()).map(|v| u16::try_from(v).unwrap_or(u16::MAX));
        let boolean = || match value {
            "Yes" | "yes" | "1" => Ok(true),
            "No" | "no" | "0" => Ok(false),
            _ => Err(format!("{name} takes Yes or No, not {value:?}")),
        };
        let digest = || {
            let mut policy = DigestPolicy { none: false, crc32c: false };
            for word in value.split(',') {
                match word.trim() {
                    "None" => policy.none = true,
                    "CRC32C" => policy.crc32c = true,
                    _ => return Err(format!("{name} takes None, CRC32C or both with a comma, not {value:?}")),
                }
            }
            Ok(policy)
        };
        let only = |wanted: &str| {
            if value == wanted { Ok(()) } else { Err(format!("{name} can only be {wanted} here, not {value:?}")) }
        };
        match name {
            "HeaderDigest" => self.header_digest = digest()?,
            "DataDigest" => self.data_digest = digest()?,
            "InitialR2T" => self.initial_r2t = boolean()?,
            "ImmediateData" => self.immediate_data = boolean()?,
            "MaxRecvDataSegmentLength" | "TargetRecvDataSegmentLength" => {
                self.max_recv_data_segment_length = number(512, RECV_SEGMENT_MAX)?;
            }
            "MaxXmitDataSegmentLength" | "InitiatorRecvDataSegmentLength" => {
                self.max_xmit_data_segment_length = number(512, SEGMENT_MAX)? & !3;
            }
            "MaxBurstLength" => self.max_burst_length = number(512, BURST_MAX)?,
            "FirstBurstLength" => self.first_burst_length = number(512, BURST_MAX)?,
            "DefaultTime2Wait" => self.default_time2wait = short(0, 3600)?,
            "DefaultTime2Retain" => self.default_time2retain = short(0, 3600)?,
            "MaxOutstandingR2T" => self.max_outstanding_r2t = short(1, u16::MAX)?,
            "DataPDUInOrder" => self.data_pdu_in_order = boolean()?,
            "DataSequenceInOrder" => self.data_sequence_in_order = boolean()?,
            "MaxQueueCmd" => self.max_queue_cmd = short(1, 1024)?,
            "MaxConnections" => only("1")?,
            "ErrorRecoveryLevel" | "MaxOutstandingUnexpectedPDUs" => only("0")?,
            "IFMarker" | "OFMarker" => only("No")?,
            "IFMarkInt" | "OFMarkInt" => only("Reject")?,
            "RDMAExtensions" => {
                boolean()?;
            }
            _ => return Err(format!("there is no parameter {name:?}")),
        }
        Ok(())
    }

    /// All keys and values, in the order and with the names of tgt's `--mode target --op show --tid N`.
    #[must_use]
    pub fn show(&self) -> Vec<(&'static str, String)> {
        let text = str::to_string;
        vec![
            ("MaxRecvDataSegmentLength", self.max_recv_data_segment_length.to_string()),
            ("HeaderDigest", text(show_digest(self.header_digest))),
            ("DataDigest", text(show_digest(self.data_digest))),
            ("InitialR2T", text(yes_no(self.initial_r2t))),
            ("MaxOutstandingR2T", self.max_outstanding_r2t.to_string()),
            ("ImmediateData", text(yes_no(self.immediate_data))),
            ("FirstBurstLength", self.first_burst_length.to_string()),
            ("MaxBurstLength", self.max_burst_length.to_string()),
            ("DataPDUInOrder", text(yes_no(self.data_pdu_in_order))),
            ("DataSequenceInOrder", text(yes_no(self.data_sequence_in_order))),
            ("ErrorRecoveryLevel", text("0")),
            ("IFMarker", text("No")),
            ("OFMarker", text("No")),
            ("DefaultTime2Wait", self.default_time2wait.to_string()),
            ("DefaultTime2Retain", self.default_time2retain.to_string()),
            ("OFMarkInt", text("Reject")),
            ("IFMarkInt", text("Reject")),
            ("MaxConnections", text("1")),
            ("RDMAExtensions", text("Yes")),
            ("TargetRecvDataSegmentLength", self.max_recv_data_segment_length.to_string()),
            ("InitiatorRecvDataSegmentLength", self.max_xmit_data_segment_length.to_string()),
            ("MaxOutstandingUnexpectedPDUs", text("0")),
            ("MaxXmitDataSegmentLength", self.max_xmit_data_segment_length.to_string()),
            ("MaxQueueCmd", self.max_queue_cmd.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shown_value_can_be_set() {
        let mut parameters = Parameters::default();
        for (name, value) in parameters.show() {
            parameters.set(name, &value).unwrap();
        }
        assert_eq!(parameters, Parameters::default());
        parameters.set("FirstBurstLength", "65536").unwrap();
        parameters.set("HeaderDigest", "CRC32C").unwrap();
        assert_eq!(parameters.first_burst_length, 65536);
        assert!(!parameters.header_digest.none);
    }

    #[test]
    fn wrong_values_change_nothing() {
        let mut parameters = Parameters::default();
        for (name, value) in [
            ("FirstBurstLength", "0"),
            ("FirstBurstLength", "x"),
            ("InitialR2T", "maybe"),
            ("MaxConnections", "4"),
            ("HeaderDigest", "MD5"),
            ("Colour", "blue"),
            ("MaxQueueCmd", "70000"),
        ] {
            assert!(parameters.set(name, value).is_err(), "{name}={value}");
        }
        assert_eq!(parameters, Parameters::default());
    }
}
