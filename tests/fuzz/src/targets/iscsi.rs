//! iSCSI: framing and digests, texts, values of CHAP, negotiation, whole logins.

use std::net::IpAddr;
use std::sync::Arc;

use qrvsa_iscsi::config::{Account, AclRule, Parameters, Secret, TargetConfig, Users};
use qrvsa_iscsi::login::chap::Challenge;
use qrvsa_iscsi::login::negotiate::{Answer, Negotiated, negotiate};
use qrvsa_iscsi::login::{Login, Step, World};
use qrvsa_iscsi::pdu::frame::{Rules, body, header, scan};
use qrvsa_iscsi::pdu::{BHS_BYTES, Bhs, ahs, digest, padded, text};

use super::{Input, MEMORY_MAX};
use crate::Target;

/// A stream of PDUs. The first byte says which digests there are, and whether they are made right.
pub const PDUS: Target = Target {
    name: "iscsi-pdus",
    covers: "streams of PDUs: headers, additional headers, digests",
    run: pdus,
    seeds: pdu_seeds,
    words: &[&[0x43], &[0x01], &[0x05], &[0, 0, 48]],
    bytes_max: 4096,
    memory_max: MEMORY_MAX,
};

/// Texts and the values in them.
pub const TEXT: Target = Target {
    name: "iscsi-text",
    covers: "login texts, numbers and binary values, negotiation of each key, CHAP answers",
    run: texts,
    seeds: || KEYS.iter().map(|(key, value)| format!("{key}={value}\0").into_bytes()).chain([login_text()]).collect(),
    words: WORDS,
    bytes_max: 2048,
    memory_max: MEMORY_MAX,
};

/// Logins of several requests.
pub const LOGIN: Target = Target {
    name: "iscsi-login",
    covers: "whole logins of several requests, with and without CHAP",
    run: login,
    seeds: login_seeds,
    words: WORDS,
    bytes_max: 4096,
    memory_max: MEMORY_MAX,
};

const NAME: &str = "iqn.2026-01.org.example:t";

const WORDS: &[&[u8]] = &[
    b"\0",
    b"=",
    b",",
    b"Yes\0",
    b"No\0",
    b"None",
    b"CRC32C",
    b"Reject\0",
    b"Irrelevant\0",
    b"NotUnderstood\0",
    b"0x",
    b"0b",
    b"CHAP_N=joe\0",
    b"CHAP_R=0x",
    b"CHAP_A=5\0",
    b"CHAP_I=1\0",
    b"CHAP_C=0x00\0",
    b"SessionType=Discovery\0",
    b"AuthMethod=CHAP,None\0",
    b"\x83",
    b"\x87",
    b"\x81",
    b"\x44",
    b"16777215\0",
    b"4294967296\0",
];

const KEYS: &[(&str, &str)] = &[
    ("HeaderDigest", "CRC32C,None"),
    ("DataDigest", "None"),
    ("MaxConnections", "4"),
    ("InitialR2T", "No"),
    ("ImmediateData", "Yes"),
    ("MaxRecvDataSegmentLength", "262144"),
    ("MaxBurstLength", "16776192"),
    ("FirstBurstLength", "65536"),
    ("DefaultTime2Wait", "2"),
    ("DefaultTime2Retain", "20"),
    ("MaxOutstandingR2T", "1"),
    ("DataPDUInOrder", "Yes"),
    ("DataSequenceInOrder", "Yes"),
    ("ErrorRecoveryLevel", "0"),
    ("IFMarker", "No"),
    ("iSCSIProtocolLevel", "1"),
    ("TaskReporting", "RFC3720,ResponseFence"),
    ("X-com.example.key", "0x1234"),
    ("SendTargets", "All"),
];

fn pdus(input: &[u8]) -> bool {
    let Some((flags, bytes)) = input.split_first() else { return false };
    let rules = Rules {
        header_digest: flags & 1 != 0,
        data_digest: flags & 2 != 0,
        data_bytes_max: if flags & 4 != 0 { 512 } else { 65_536 },
    };
    let mut stream = bytes.to_vec();
    if flags & 8 != 0 {
        right_digests(&mut stream, &rules);
    }
    let mut rest = stream.as_slice();
    let mut count = 0;
    while let Ok(Some(found)) = header(rest, &rules) {
        assert!(found.data_bytes <= rules.data_bytes_max && found.total >= BHS_BYTES);
        assert!(found.data_at + found.data_bytes <= found.total);
        let Some(pdu) = body(rest, &found, &rules) else { break };
        assert_eq!(pdu.data.len(), found.data_bytes);
        if let Some(more) = ahs::parse(pdu.ahs) {
            assert!(more.extended_cdb.len() <= pdu.ahs.len());
        }
        assert!(pdu.data_good || flags & 8 == 0, "a right digest");
        count += 1;
        rest = rest.get(found.total..).unwrap_or_default();
    }
    assert_eq!(scan(&stream, &rules), count);
    count > 0
}

/// Puts the right digests where a stream has room for them.
fn right_digests(stream: &mut [u8], rules: &Rules) {
    let mut at = 0;
    while let Some(bhs) = stream.get(at..).and_then(|rest| rest.first_chunk::<BHS_BYTES>()).copied() {
        let bhs = Bhs(bhs);
        let mut end = at + BHS_BYTES + bhs.ahs_bytes();
        if rules.header_digest {
            let Some(covered) = stream.get(at..end) else { return };
            let sum = digest(&[covered]);
            let Some(place) = stream.get_mut(end..end + 4) else { return };
            place.copy_from_slice(&sum);
            end += 4;
        }
        let data = padded(bhs.data_bytes());
        if rules.data_digest && data > 0 {
            let Some(covered) = stream.get(end..end + data) else { return };
            let sum = digest(&[covered]);
            let Some(place) = stream.get_mut(end + data..end + data + 4) else { return };
            place.copy_from_slice(&sum);
            end += 4;
        }
        at = end + data;
    }
}

fn pdu_seeds() -> Vec<Vec<u8>> {
    let pdu = |opcode: u8, ahs: &[u8], data: &[u8]| {
        let mut bytes = vec![0u8; BHS_BYTES];
        bytes[0] = opcode;
        bytes[1] = 0x80;
        bytes[4] = u8::try_from(ahs.len() / 4).unwrap_or(0);
        bytes[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes()[1..]);
        bytes.extend_from_slice(ahs);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    // an extended CDB of 20 bytes; the length for a bidirectional read
    let long = [&[0, 5, 1, 0][..], &[0x7f, 0, 0, 0], &[0, 5, 2, 0], &[0, 0, 2, 0], &[0; 4]].concat();
    let with_digests = [vec![0x0b], pdu(0x43, &[], &login_text()), pdu(0x01, &long, b"data")].concat();
    let mut plain = vec![0];
    for opcode in [0x40, 0x01, 0x02, 0x04, 0x05, 0x06] {
        let whole = pdu(opcode, &[], &[]);
        plain.extend_from_slice(&whole[..BHS_BYTES]);
    }
    vec![with_digests, plain, [vec![0x0f], pdu(0x05, &[], &[7; 500])].concat()]
}

fn texts(input: &[u8]) -> bool {
    if let Ok(value) = std::str::from_utf8(input) {
        let number = text::number(value);
        if let Some(number) = number {
            assert_eq!(text::number(&number.to_string()), Some(number));
        }
        if let Some(bytes) = text::binary(value) {
            assert!(bytes.len() <= value.len());
            assert!(bytes.is_empty() || text::binary(&text::hex(&bytes)) == Some(bytes));
        }
    }
    let Some(pairs) = text::parse(input) else { return false };
    let mut again = Vec::new();
    let mut agreed = Negotiated::default();
    let ours = Parameters::default();
    let challenge = Challenge::new("7,5", &mut |out| out.fill(9)).expect("both are known");
    let users = users();
    for (i, (key, value)) in pairs.iter().enumerate() {
        text::push(&mut again, key, value);
        match negotiate(key, value, &ours, i % 2 == 1, &mut agreed) {
            Answer::Value(value) => assert!(!value.contains('\0')),
            Answer::Nothing => {}
        }
        let mut out = Vec::new();
        let asked = Some((key.as_str(), value.as_str()));
        assert!(challenge.check(&users, "joe", value, asked, &mut out).is_err(), "a response that was guessed");
        let _ = Challenge::new(value, &mut |out| out.fill(1));
        let _ = Parameters::default().set(key, value);
    }
    // what was agreed on can be kept
    assert!((512..=0xff_ffff).contains(&agreed.max_send_bytes) && (512..=0xff_ffff).contains(&agreed.max_burst_bytes));
    assert!(agreed.first_burst_bytes >= 512 && agreed.max_outstanding_r2t >= 1);
    let _ = agreed.show();
    assert_eq!(text::parse(&again), Some(pairs));
    true
}

fn users() -> Users {
    let account =
        |name: &str, secret: &str| Account { name: name.into(), secret: Secret::new(secret).expect("long enough") };
    Users { incoming: vec![account("joe", "opensesame12")], outgoing: Some(account("tgt", "sesameopen12")) }
}

struct Portal {
    target: Arc<TargetConfig>,
    secured: bool,
}

impl World for Portal {
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>> {
        (name == NAME).then(|| self.target.clone())
    }
    fn discovery_users(&self) -> Users {
        if self.secured { users() } else { Users::default() }
    }
    fn fill_random(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
    fn peer(&self) -> IpAddr {
        IpAddr::from([192, 0, 2, 7])
    }
    fn portal_group_tag(&self) -> u16 {
        1
    }
}

/// Steps of a login: a byte that says what portal it is; then, for each request, byte 1 of the header, what else of the
/// header is changed (place and value), the length of the text, and the text.
fn login(input: &[u8]) -> bool {
    let mut input = Input(input);
    let secured = input.u8() & 1 != 0;
    let mut target = TargetConfig::new(NAME.parse().expect("a name"), 1);
    target.acl.push(AclRule::All);
    if secured {
        target.users = users();
    }
    let portal = Portal { target: Arc::new(target), secured };
    let mut login = Login::default();
    let mut good = false;
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let mut bytes = [0; BHS_BYTES];
        bytes[0] = 0x43;
        bytes[1] = input.u8();
        bytes[8] = 0x80;
        let (at, value) = (usize::from(input.u8()), input.u8());
        if let Some(place) = bytes.get_mut(at) {
            *place = value;
        }
        let len = usize::from(input.u16() % 1024);
        match login.step(&Bhs(bytes), input.bytes(len), &portal) {
            Step::Reply { text, .. } => {
                assert!(text::parse(&text).is_some());
                good = true;
            }
            Step::Finished { text, .. } => {
                assert!(text::parse(&text).is_some());
                assert!(!secured || login.user.is_some(), "nobody gets in without the secret");
                assert!(login.discovery || login.target.is_some());
                return true;
            }
            Step::Refused { status, .. } => {
                assert_ne!(status, 0);
                break;
            }
        }
    }
    good
}

fn login_text() -> Vec<u8> {
    let mut out = Vec::new();
    text::push(&mut out, "InitiatorName", "iqn.2026-01.org.example:i");
    text::push(&mut out, "TargetName", NAME);
    text::push(&mut out, "SessionType", "Normal");
    out
}

fn login_seeds() -> Vec<Vec<u8>> {
    // place 63 is beyond the header: nothing is changed
    let step = |flags: u8, text: &[u8]| {
        [&[flags, 63, 0][..], &u16::try_from(text.len()).unwrap_or(0).to_le_bytes(), text].concat()
    };
    let keys: Vec<u8> = KEYS.iter().flat_map(|(k, v)| format!("{k}={v}\0").into_bytes()).collect();
    let first = |more: &[u8]| [&login_text()[..], more].concat();
    let discovery = b"InitiatorName=iqn.2026-01.org.example:i\0SessionType=Discovery\0AuthMethod=None\0";
    vec![
        [vec![0], step(0x87, &first(&keys))].concat(),
        [vec![0], step(0x81, &first(b"AuthMethod=None\0")), step(0x04, &keys), step(0x87, b"")].concat(),
        [vec![0], step(0x44, &login_text()[..20]), step(0x87, &login_text()[20..])].concat(),
        [vec![0], step(0x87, discovery)].concat(),
        [
            vec![1],
            step(0x00, &first(b"AuthMethod=CHAP,None\0")),
            step(0x00, b"CHAP_A=7,5\0"),
            step(0x81, b"CHAP_N=joe\0CHAP_R=0x0123456789abcdef0123456789abcdef\0CHAP_I=5\0CHAP_C=0x112233445566\0"),
        ]
        .concat(),
    ]
}
