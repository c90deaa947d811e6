use super::*;
use crate::config::{Account, AclRule, Redirect, Secret};
use crate::pdu::BHS_BYTES;
use chap::Algorithm;

const NAME: &str = "iqn.2026-01.test:t";

struct Fixed {
    target: Option<Arc<TargetConfig>>,
    discovery: Users,
}

impl World for Fixed {
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>> {
        self.target.clone().filter(|t| t.name.as_str() == name)
    }
    fn discovery_users(&self) -> Users {
        self.discovery.clone()
    }
    fn fill_random(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
    fn peer(&self) -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }
    fn portal_group_tag(&self) -> u16 {
        7
    }
}

fn world(change: impl FnOnce(&mut TargetConfig)) -> Fixed {
    let mut target = TargetConfig::new(NAME.parse().unwrap(), 1);
    target.acl.push(AclRule::All);
    change(&mut target);
    Fixed { target: Some(Arc::new(target)), discovery: Users::default() }
}

fn account(name: &str, secret: &str) -> Account {
    Account { name: name.into(), secret: Secret::new(secret).unwrap() }
}

fn request(flags: u8) -> Bhs {
    let mut bytes = [0; BHS_BYTES];
    bytes[0] = 0x43;
    bytes[1] = flags;
    bytes[8] = 0x80;
    Bhs(bytes)
}

fn pairs(list: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in list {
        text::push(&mut out, key, value);
    }
    out
}

const FIRST: [(&str, &str); 2] = [("InitiatorName", "iqn.2026-01.test:i"), ("TargetName", NAME)];

fn with(more: &[(&str, &str)]) -> Vec<u8> {
    pairs(&[&FIRST[..], more].concat())
}

fn status_of(step: &Step) -> u16 {
    match step {
        Step::Refused { status, .. } => *status,
        _ => status::SUCCESS,
    }
}

fn texts(step: &Step) -> Vec<(String, String)> {
    match step {
        Step::Reply { text, .. } | Step::Finished { text, .. } | Step::Refused { text, .. } => {
            text::parse(text).unwrap()
        }
    }
}

fn value(step: &Step, key: &str) -> Option<String> {
    texts(step).into_iter().find(|(k, _)| k == key).map(|(_, v)| v)
}

#[test]
fn straight_to_operation() {
    let mut login = Login::default();
    let step = login.step(
        &request(0x87),
        &with(&[("InitialR2T", "No"), ("MaxRecvDataSegmentLength", "65536")]),
        &world(|_| ()),
    );
    assert!(matches!(step, Step::Finished { flags: 0x87, .. }), "{step:?}");
    assert_eq!(value(&step, "InitialR2T").unwrap(), "No");
    assert_eq!(value(&step, "TargetPortalGroupTag").unwrap(), "7");
    assert_eq!(value(&step, "MaxRecvDataSegmentLength").unwrap(), "262144");
    assert!(!login.agreed.initial_r2t);
    assert_eq!((login.agreed.max_send_bytes, login.agreed.max_recv_bytes), (65_536, 262_144));
}

#[test]
fn text_in_several_pdus() {
    let mut login = Login::default();
    let text = with(&[("InitialR2T", "Yes")]);
    for piece in text[..text.len() - 5].chunks(20) {
        let step = login.step(&request(0x44), piece, &world(|_| ()));
        assert_eq!(step, Step::Reply { flags: 4, text: Vec::new() });
    }
    let step = login.step(&request(0x87), &text[text.len() - 5..], &world(|_| ()));
    assert!(matches!(step, Step::Finished { .. }));
    assert_eq!(value(&step, "InitialR2T").unwrap(), "Yes");
}

#[test]
fn who_may_log_in() {
    let denied =
        |change: fn(&mut TargetConfig)| status_of(&Login::default().step(&request(0x87), &with(&[]), &world(change)));
    assert_eq!(denied(|_| ()), status::SUCCESS);
    assert_eq!(denied(|t| t.acl.clear()), status::NOT_FOUND);
    assert_eq!(denied(|t| t.acl = vec![AclRule::InitiatorName("iqn.other".into())]), status::NOT_FOUND);
    assert_eq!(denied(|t| t.acl = vec![AclRule::Address("192.0.2.0/24".parse().unwrap())]), status::SUCCESS);
    assert_eq!(denied(|t| t.state = TargetState::Offline), status::UNAVAILABLE);
    assert_eq!(denied(|t| t.name = "iqn.2026-01.test:other".parse().unwrap()), status::NOT_FOUND);
    assert_eq!(denied(|t| t.users.incoming.push(account("joe", "opensesame12"))), status::AUTHENTICATION);
    let moved = world(|t| t.redirect = Some(Redirect { to: "192.0.2.9:3261".parse().unwrap(), permanent: true }));
    let step = Login::default().step(&request(0x87), &with(&[]), &moved);
    assert_eq!(status_of(&step), status::MOVED_PERMANENTLY);
    assert_eq!(value(&step, "TargetAddress").unwrap(), "192.0.2.9:3261");
}

#[test]
fn chap_both_ways() {
    let secured = world(|t| {
        t.users =
            Users { incoming: vec![account("joe", "opensesame12")], outgoing: Some(account("tgt", "sesameopen12")) };
    });
    for (number, algorithm) in
        [("5", Algorithm::Md5), ("6", Algorithm::Sha1), ("7", Algorithm::Sha256), ("8,5", Algorithm::Sha3)]
    {
        for right in [true, false] {
            let mut login = Login::default();
            let step = login.step(&request(0x81), &with(&[("AuthMethod", "CHAP,None")]), &secured);
            assert!(matches!(step, Step::Reply { flags: 0, .. }), "no transit yet: {step:?}");
            assert_eq!(value(&step, "AuthMethod").unwrap(), "CHAP");
            let step = login.step(&request(0x00), &pairs(&[("CHAP_A", number)]), &secured);
            assert_eq!(value(&step, "CHAP_A").unwrap(), algorithm.number().to_string());
            let id: u8 = value(&step, "CHAP_I").unwrap().parse().unwrap();
            let challenge = text::binary(&value(&step, "CHAP_C").unwrap()).unwrap();
            let secret: &[u8] = if right { b"opensesame12" } else { b"opensesame11" };
            let response = text::hex(&algorithm.response(id, secret, &challenge));
            let answer = pairs(&[("CHAP_N", "joe"), ("CHAP_R", &response), ("CHAP_I", "3"), ("CHAP_C", "0x0102")]);
            let step = login.step(&request(0x81), &answer, &secured);
            if !right {
                assert_eq!(status_of(&step), status::AUTHENTICATION);
                continue;
            }
            assert!(matches!(step, Step::Reply { flags: 0x81, .. }), "{step:?}");
            assert_eq!(value(&step, "CHAP_R").unwrap(), text::hex(&algorithm.response(3, b"sesameopen12", &[1, 2])));
            let step = login.step(&request(0x87), &pairs(&[("HeaderDigest", "CRC32C")]), &secured);
            assert!(matches!(step, Step::Finished { .. }));
            assert_eq!(login.user.as_deref(), Some("joe"));
            assert!(login.agreed.header_digest);
        }
    }
}

#[test]
fn no_way_around_chap() {
    let secured = world(|t| t.users.incoming.push(account("joe", "opensesame12")));
    let run = |steps: &[(u8, Vec<u8>)]| {
        let mut login = Login::default();
        steps.iter().map(|(flags, text)| login.step(&request(*flags), text, &secured)).last().unwrap()
    };
    let chap = with(&[("AuthMethod", "CHAP")]);
    for steps in [
        vec![(0x81, with(&[("AuthMethod", "None")]))],
        vec![(0x81, with(&[]))],
        vec![(0x83, with(&[("CHAP_N", "joe"), ("CHAP_R", "0x00")]))],
        vec![(0x00, chap.clone()), (0x87, pairs(&[]))],
        vec![(0x00, chap.clone()), (0x00, pairs(&[("CHAP_A", "5")])), (0x83, pairs(&[]))],
        vec![(0x00, chap.clone()), (0x00, pairs(&[("CHAP_A", "1")]))],
        vec![(0x00, chap.clone()), (0x83, pairs(&[("CHAP_R", "0x00")]))],
    ] {
        assert_ne!(status_of(&run(&steps)), status::SUCCESS, "{steps:?}");
    }
    let step = run(&[(0x00, chap), (0x81, pairs(&[]))]);
    assert!(matches!(step, Step::Reply { flags: 0, .. }), "waits for CHAP_A: {step:?}");
}

#[test]
fn discovery_has_its_own_accounts() {
    let text = pairs(&[("InitiatorName", "iqn.2026-01.test:i"), ("SessionType", "Discovery"), ("InitialR2T", "No")]);
    let mut open = world(|_| ());
    let step = Login::default().step(&request(0x87), &text, &open);
    assert!(matches!(step, Step::Finished { .. }));
    assert_eq!(value(&step, "InitialR2T").unwrap(), "Irrelevant");
    assert_eq!(value(&step, "TargetPortalGroupTag"), None);
    open.discovery.incoming.push(account("d", "discover12345"));
    assert_eq!(status_of(&Login::default().step(&request(0x87), &text, &open)), status::AUTHENTICATION);
}

#[test]
fn malformed_logins() {
    let at = |flags: u8, text: &[u8]| status_of(&Login::default().step(&request(flags), text, &world(|_| ())));
    assert_eq!(at(0x87, b""), status::MISSING_PARAMETER);
    assert_eq!(at(0x87, &pairs(&[("InitiatorName", "iqn.a")])), status::MISSING_PARAMETER);
    assert_eq!(at(0x87, &pairs(&[("InitiatorName", "a b"), ("TargetName", NAME)])), status::INITIATOR_ERROR);
    assert_eq!(at(0x87, &with(&[("SessionType", "Odd")])), status::SESSION_TYPE);
    assert_eq!(at(0x87, &with(&[("InitialR2T", "No"), ("InitialR2T", "No")])), status::INITIATOR_ERROR);
    assert_eq!(at(0xc7, &with(&[])), status::INITIATOR_ERROR);
    assert_eq!(at(0x86, &with(&[])), status::INITIATOR_ERROR);
    assert_eq!(at(0x80, &with(&[])), status::INITIATOR_ERROR);
    assert_eq!(at(0x8f, &with(&[])), status::INITIATOR_ERROR);
    assert_eq!(at(0x87, b"\xff\xff"), status::INITIATOR_ERROR);
    let mut newer = request(0x87);
    newer.0[3] = 1;
    assert_eq!(status_of(&Login::default().step(&newer, &with(&[]), &world(|_| ()))), status::VERSION);
    let mut login = Login::default();
    login.step(&request(0x04), &with(&[]), &world(|_| ()));
    let mut other = request(0x87);
    other.0[21] = 9;
    assert_eq!(status_of(&login.step(&other, b"", &world(|_| ()))), status::INVALID_DURING_LOGIN);
    let mut login = Login::default();
    let endless = (0..1000).map(|_| login.step(&request(0x04), b"", &world(|_| ()))).any(|s| status_of(&s) != 0);
    assert!(endless);
}

#[test]
fn refused_is_refused() {
    // the name is taken before the missing target is found: a second request must not go on from there
    let open = world(|t| t.users.incoming.push(account("joe", "opensesame12")));
    let mut login = Login::default();
    let nobody = pairs(&[("InitiatorName", "iqn.2026-01.test:i")]);
    assert_eq!(status_of(&login.step(&request(0x87), &nobody, &open)), status::MISSING_PARAMETER);
    assert_eq!(status_of(&login.step(&request(0x87), b"", &open)), status::INVALID_DURING_LOGIN);
}

proptest::proptest! {
    #[test]
    fn total(steps in proptest::collection::vec((proptest::num::u8::ANY, proptest::collection::vec(
        (proptest::sample::select(vec!["InitiatorName", "TargetName", "SessionType", "AuthMethod", "CHAP_A", "CHAP_N", "CHAP_R",
            "CHAP_I", "CHAP_C", "InitialR2T", "MaxBurstLength", "X-y"]),
         proptest::sample::select(vec![NAME, "CHAP", "None", "5", "Discovery", "Normal", "0x12", "Yes", ""])), 0..6)), 1..8)) {
        let secured = world(|t| t.users.incoming.push(account("joe", "opensesame12")));
        let mut login = Login::default();
        for (flags, list) in steps {
            // Nobody guesses a response to a fixed hash.
            let step = login.step(&request(flags), &pairs(&list), &secured);
            let finished = matches!(step, Step::Finished { .. });
            proptest::prop_assert!(!finished || login.discovery);
        }
    }
}
