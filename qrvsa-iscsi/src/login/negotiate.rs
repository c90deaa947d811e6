//! Negotiation of operational keys (RFC 7143 13), one key at a time.

use crate::config::{DigestPolicy, Parameters};
use crate::pdu::text::number;

/// What a connection and its session agreed on. Starts at the defaults of RFC 7143.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// HeaderDigest is CRC32C.
    pub header_digest: bool,
    /// DataDigest is CRC32C.
    pub data_digest: bool,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// Longest data segment that the initiator takes, bytes.
    pub max_send_bytes: u32,
    /// Longest data segment that we declared, bytes.
    pub max_recv_bytes: u32,
    /// MaxBurstLength, bytes.
    pub max_burst_bytes: u32,
    /// FirstBurstLength, bytes.
    pub first_burst_bytes: u32,
    /// DefaultTime2Wait, seconds.
    pub time2wait: u16,
    /// DefaultTime2Retain, seconds.
    pub time2retain: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// iSCSIProtocolLevel.
    pub protocol_level: u8,
}

/// MaxRecvDataSegmentLength of a side that declared none, bytes.
pub const DEFAULT_SEGMENT_BYTES: u32 = 8192;

impl Default for Negotiated {
    fn default() -> Negotiated {
        Negotiated {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_send_bytes: DEFAULT_SEGMENT_BYTES,
            max_recv_bytes: DEFAULT_SEGMENT_BYTES,
            max_burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            time2wait: 2,
            time2retain: 20,
            max_outstanding_r2t: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            protocol_level: 1,
        }
    }
}

impl Negotiated {
    /// Keys and values, for people.
    #[must_use]
    pub fn show(&self) -> Vec<(&'static str, String)> {
        let yes = |value: bool| String::from(if value { "Yes" } else { "No" });
        let digest = |value: bool| String::from(if value { "CRC32C" } else { "None" });
        vec![
            ("HeaderDigest", digest(self.header_digest)),
            ("DataDigest", digest(self.data_digest)),
            ("InitialR2T", yes(self.initial_r2t)),
            ("ImmediateData", yes(self.immediate_data)),
            ("InitiatorRecvDataSegmentLength", self.max_send_bytes.to_string()),
            ("TargetRecvDataSegmentLength", self.max_recv_bytes.to_string()),
            ("MaxBurstLength", self.max_burst_bytes.to_string()),
            ("FirstBurstLength", self.first_burst_bytes.to_string()),
            ("DefaultTime2Wait", self.time2wait.to_string()),
            ("DefaultTime2Retain", self.time2retain.to_string()),
            ("MaxOutstandingR2T", self.max_outstanding_r2t.to_string()),
            ("DataPDUInOrder", yes(self.data_pdu_in_order)),
            ("DataSequenceInOrder", yes(self.data_sequence_in_order)),
            ("ErrorRecoveryLevel", String::from("0")),
            ("MaxConnections", String::from("1")),
            ("iSCSIProtocolLevel", self.protocol_level.to_string()),
        ]
    }
}

/// What to say to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: it declared something, or answered an offer of ours.
    Nothing,
    /// This value.
    Value(String),
}

/// Answers that the protocol reserves.
const REJECT: &str = "Reject";
const IRRELEVANT: &str = "Irrelevant";

/// Negotiates one operational key in a login. Keys of identity and of security are the caller's.
pub fn negotiate(key: &str, value: &str, ours: &Parameters, discovery: bool, agreed: &mut Negotiated) -> Answer {
    if matches!(value, "Reject" | "Irrelevant" | "NotUnderstood") {
        return Answer::Nothing;
    }
    let say = |text: &str| Answer::Value(text.to_string());
    let in_range = |least: u32, most: u32| {
        number(value).and_then(|v| u32::try_from(v).ok()).filter(|v| (least..=most).contains(v))
    };
    // Keys about SCSI data have no meaning in a discovery session.
    let scsi_only = matches!(
        key,
        "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "MaxConnections"
            | "TaskReporting"
            | "iSCSIProtocolLevel"
    );
    if discovery && scsi_only {
        return say(IRRELEVANT);
    }
    match key {
        "HeaderDigest" => digest(value, ours.header_digest, &mut agreed.header_digest),
        "DataDigest" => digest(value, ours.data_digest, &mut agreed.data_digest),
        "InitialR2T" => boolean(value, |v| v || ours.initial_r2t, &mut agreed.initial_r2t),
        "ImmediateData" => boolean(value, |v| v && ours.immediate_data, &mut agreed.immediate_data),
        "DataPDUInOrder" => boolean(value, |v| v || ours.data_pdu_in_order, &mut agreed.data_pdu_in_order),
        "DataSequenceInOrder" => {
            boolean(value, |v| v || ours.data_sequence_in_order, &mut agreed.data_sequence_in_order)
        }
        "MaxRecvDataSegmentLength" => match in_range(512, 0x00ff_ffff) {
            Some(bytes) => {
                agreed.max_send_bytes = bytes;
                Answer::Nothing
            }
            None => say(REJECT),
        },
        "MaxBurstLength" => match in_range(512, 0x00ff_ffff) {
            Some(bytes) => {
                agreed.max_burst_bytes = bytes.min(ours.max_burst_length);
                agreed.first_burst_bytes = agreed.first_burst_bytes.min(agreed.max_burst_bytes);
                say(&agreed.max_burst_bytes.to_string())
            }
            None => say(REJECT),
        },
        "FirstBurstLength" => match in_range(512, 0x00ff_ffff) {
            Some(bytes) => {
                // never beyond MaxBurstLength (RFC 7143 13.14)
                agreed.first_burst_bytes = bytes.min(ours.first_burst_length).min(agreed.max_burst_bytes);
                say(&agreed.first_burst_bytes.to_string())
            }
            None => say(REJECT),
        },
        "DefaultTime2Wait" => short(in_range(0, 3600), |v| v.max(ours.default_time2wait), &mut agreed.time2wait),
        "DefaultTime2Retain" => short(in_range(0, 3600), |v| v.min(ours.default_time2retain), &mut agreed.time2retain),
        "MaxOutstandingR2T" => {
            short(in_range(1, 65_535), |v| v.min(ours.max_outstanding_r2t), &mut agreed.max_outstanding_r2t)
        }
        "MaxConnections" => say(if in_range(1, 65_535).is_some() { "1" } else { REJECT }),
        "ErrorRecoveryLevel" => say(if in_range(0, 2).is_some() { "0" } else { REJECT }),
        "iSCSIProtocolLevel" => match in_range(0, 31) {
            Some(level) => {
                agreed.protocol_level = u8::from(level > 0);
                say(&agreed.protocol_level.to_string())
            }
            None => say(REJECT),
        },
        "TaskReporting" => say(if value.split(',').any(|v| v == "RFC3720") { "RFC3720" } else { REJECT }),
        // Obsolete (RFC 7143 13.25), and to be answered so.
        "IFMarker" | "OFMarker" => say("No"),
        "IFMarkInt" | "OFMarkInt" => say(REJECT),
        "RDMAExtensions" | "InitiatorRecvDataSegmentLength" | "TargetRecvDataSegmentLength" => say(IRRELEVANT),
        // Only targets declare these, and SendTargets has its place after the login.
        "TargetAlias" | "TargetAddress" | "TargetPortalGroupTag" | "SendTargets" => say(REJECT),
        _ => say("NotUnderstood"),
    }
}

fn digest(value: &str, ours: DigestPolicy, agreed: &mut bool) -> Answer {
    for word in value.split(',') {
        match word.trim() {
            "CRC32C" if ours.crc32c => {
                *agreed = true;
                return Answer::Value("CRC32C".into());
            }
            "None" if ours.none => {
                *agreed = false;
                return Answer::Value("None".into());
            }
            _ => {}
        }
    }
    Answer::Value(REJECT.into())
}

fn boolean(value: &str, result: impl Fn(bool) -> bool, agreed: &mut bool) -> Answer {
    let offered = match value {
        "Yes" => true,
        "No" => false,
        _ => return Answer::Value(REJECT.into()),
    };
    *agreed = result(offered);
    Answer::Value(if *agreed { "Yes" } else { "No" }.into())
}

fn short(offered: Option<u32>, result: impl Fn(u16) -> u16, agreed: &mut u16) -> Answer {
    match offered.and_then(|v| u16::try_from(v).ok()) {
        Some(offered) => {
            *agreed = result(offered);
            Answer::Value(agreed.to_string())
        }
        None => Answer::Value(REJECT.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(key: &str, value: &str, ours: &Parameters) -> (Answer, Negotiated) {
        let mut agreed = Negotiated::default();
        (negotiate(key, value, ours, false, &mut agreed), agreed)
    }

    #[test]
    fn every_key() {
        let ours = Parameters::default();
        for (key, value, expected) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "X-sum,CRC32C", "CRC32C"),
            ("DataDigest", "X-sum", "Reject"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "no", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "0x400", "1024"),
            ("MaxBurstLength", "100", "Reject"),
            ("FirstBurstLength", "8192", "8192"),
            ("DefaultTime2Wait", "0", "2"),
            ("DefaultTime2Wait", "9", "9"),
            ("DefaultTime2Wait", "-1", "Reject"),
            ("DefaultTime2Retain", "0", "0"),
            ("MaxOutstandingR2T", "0", "Reject"),
            ("MaxOutstandingR2T", "65535", "16"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "Yes", "Yes"),
            ("MaxConnections", "8", "1"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("IFMarker", "Yes", "No"),
            ("OFMarkInt", "2048~65535", "Reject"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("SendTargets", "All", "Reject"),
            ("X-com.example.colour", "blue", "NotUnderstood"),
            ("X#grape", "red", "NotUnderstood"),
        ] {
            assert_eq!(one(key, value, &ours).0, Answer::Value(expected.into()), "{key}={value}");
        }
        let (answer, agreed) = one("MaxRecvDataSegmentLength", "262144", &ours);
        assert_eq!((answer, agreed.max_send_bytes), (Answer::Nothing, 262_144));
        assert_eq!(
            negotiate("InitialR2T", "No", &ours, true, &mut Negotiated::default()),
            Answer::Value("Irrelevant".into())
        );
    }

    #[test]
    fn the_first_burst_is_never_longer_than_a_burst() {
        let (ours, mut agreed) = (Parameters::default(), Negotiated::default());
        for (key, value, expected) in [("MaxBurstLength", "8192", "8192"), ("FirstBurstLength", "65536", "8192")] {
            assert_eq!(negotiate(key, value, &ours, false, &mut agreed), Answer::Value(expected.into()));
        }
        assert_eq!(agreed.first_burst_bytes, 8192);
    }

    #[test]
    fn a_policy_of_digests_holds() {
        let mut ours = Parameters::default();
        ours.set("HeaderDigest", "CRC32C").unwrap();
        assert_eq!(one("HeaderDigest", "None,CRC32C", &ours).0, Answer::Value("CRC32C".into()));
        assert_eq!(one("HeaderDigest", "None", &ours).0, Answer::Value("Reject".into()));
        ours.set("HeaderDigest", "None").unwrap();
        assert_eq!(one("HeaderDigest", "CRC32C,None", &ours).0, Answer::Value("None".into()));
    }

    proptest! {
        #[test]
        fn bounds_hold_for_any_value(
            key in prop::sample::select(vec!["MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T", "MaxRecvDataSegmentLength",
                "DefaultTime2Wait", "InitialR2T", "HeaderDigest", "iSCSIProtocolLevel"]),
            value in "[0-9]{1,12}|\\PC{0,12}|0x[0-9a-f]{1,9}",
        ) {
            let ours = Parameters::default();
            let (_, agreed) = one(key, &value, &ours);
            prop_assert!((512..=1 << 20).contains(&agreed.max_burst_bytes));
            prop_assert!(agreed.first_burst_bytes <= agreed.max_burst_bytes);
            prop_assert!((1..=16).contains(&agreed.max_outstanding_r2t));
            prop_assert!((512..=0x00ff_ffff).contains(&agreed.max_send_bytes));
        }
    }
}
