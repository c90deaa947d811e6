//! Logins, discovery, reinstatement, redirection, and management of a running service.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::time::Duration;

use qrvsa_iscsi::config::{Account, AclRule, DiscoveryConfig, Redirect, Secret, TargetConfig, TargetState, Users};
use qrvsa_iscsi::login::chap::Algorithm;
use qrvsa_iscsi::pdu::text;
use qrvsa_iscsi::service::ErrorKind;
use support::{Bench, Device, Head, Initiator, NONE, READ, TARGET, read10, until};

fn account(name: &str, secret: &str) -> Account {
    Account { name: name.into(), secret: Secret::new(secret).unwrap() }
}

/// A CHAP login, perhaps mutual; the status, and whether the target proved itself.
fn chap(i: &mut Initiator, algorithm: Algorithm, name: &str, secret: &str, discovery: bool) -> (u16, bool) {
    let own = i.name.clone();
    let kind = if discovery { ("SessionType", "Discovery") } else { ("TargetName", TARGET) };
    let pdu = i.login_step(0x00, &[("InitiatorName", &own), kind, ("AuthMethod", "CHAP,None")]);
    if pdu.value("AuthMethod").as_deref() != Some("CHAP") {
        return (u16::from_be_bytes([pdu.bhs.0[36], pdu.bhs.0[37]]), false);
    }
    let pdu = i.login_step(0x00, &[("CHAP_A", &algorithm.number().to_string())]);
    let id = pdu.value("CHAP_I").unwrap().parse().unwrap();
    let challenge = text::binary(&pdu.value("CHAP_C").unwrap()).unwrap();
    let response = text::hex(&algorithm.response(id, secret.as_bytes(), &challenge));
    let pdu = i.login_step(0x83, &[("CHAP_N", name), ("CHAP_R", &response), ("CHAP_I", "77"), ("CHAP_C", "0x010203")]);
    let proof = text::hex(&algorithm.response(77, b"sesameopen12", &[1, 2, 3]));
    let proven = pdu.value("CHAP_R").is_some_and(|r| r == proof);
    (u16::from_be_bytes([pdu.bhs.0[36], pdu.bhs.0[37]]), proven)
}

fn users() -> Users {
    Users {
        incoming: vec![account("a", "first secret"), account("joe", "opensesame12")],
        outgoing: Some(account("t", "sesameopen12")),
    }
}

#[test]
fn chap_with_every_algorithm_on_target_and_discovery() {
    let bench = Bench::with(|_| (), |t| t.users = users());
    bench.service.set_discovery(DiscoveryConfig { users: users() });
    for algorithm in [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha3] {
        for discovery in [false, true] {
            assert_eq!(chap(&mut bench.connect(), algorithm, "joe", "opensesame12", discovery), (0, true));
            assert_eq!(chap(&mut bench.connect(), algorithm, "joe", "opensesame13", discovery).0, 0x0201);
            assert_eq!(chap(&mut bench.connect(), algorithm, "jim", "opensesame12", discovery).0, 0x0201);
        }
    }
    assert_eq!(bench.connect().login(&[]), 0x0201);
}

#[test]
fn configuration_changes_hold_from_the_next_login_on() {
    let bench = Bench::new();
    let mut stays = bench.session(&[]);
    let status = || bench.connect().login(&[]);
    bench.change(|t| t.acl = vec![AclRule::InitiatorName("iqn.2026-01.test:other".into())]);
    assert_eq!(status(), 0x0203);
    bench.change(|t| t.acl.push(AclRule::Address("127.0.0.0/8".parse().unwrap())));
    let other = || Initiator { name: "iqn.2026-01.test:second".into(), ..bench.connect() };
    assert_eq!(other().login(&[]), 0);
    bench.change(|t| t.state = TargetState::Offline);
    assert_eq!(status(), 0x0301);
    bench.change(|t| {
        t.state = TargetState::Ready;
        t.redirect = Some(Redirect { to: "192.0.2.1:3261".parse().unwrap(), permanent: false });
    });
    let mut moved = bench.connect();
    assert_eq!(moved.login(&[]), 0x0101);
    assert_eq!(moved.answer.as_ref().unwrap().value("TargetAddress").unwrap(), "192.0.2.1:3261");
    assert!(moved.closed());
    assert_eq!(stays.run(READ, 512, &read10(0, 1), &[]).0.status(), 0);
}

#[test]
fn a_closed_service_takes_nobody_new() {
    let bench = Bench::new();
    let mut stays = bench.session(&[]);
    bench.service.set_open(false);
    assert!(!bench.service.is_open());
    assert!(bench.connect().closed());
    assert_eq!(stays.run(READ, 512, &read10(0, 1), &[]).0.status(), 0);
    bench.service.set_open(true);
    let other = || Initiator { name: "iqn.2026-01.test:second".into(), ..bench.connect() };
    assert_eq!(other().login(&[]), 0);
}

#[test]
fn send_targets_tells_what_one_may_see() {
    let bench = Bench::new();
    let more = |name: &str, tid, change: fn(&mut TargetConfig)| {
        let mut config = TargetConfig::new(name.parse().unwrap(), tid);
        change(&mut config);
        bench.service.create_target(config, std::sync::Arc::new(Device::default())).unwrap();
    };
    more("iqn.2026-01.test:hidden", 2, |_| ());
    more("iqn.2026-01.test:told", 3, |t| {
        t.acl.push(AclRule::All);
        t.advertise = vec!["10.0.2.2:3299".parse().unwrap(), "[fe80::7]:3260".parse().unwrap()];
    });
    more("iqn.2026-01.test:elsewhere", 4, |t| {
        t.acl.push(AclRule::All);
        t.portals = vec!["192.0.2.1:3260".parse().unwrap()];
    });
    let ask = |i: &mut Initiator, value: &str| {
        let mut query = Vec::new();
        text::push(&mut query, "SendTargets", value);
        let tag = i.tag();
        i.send_numbered(Head::new(0x04, 0x80).word(16, tag).word(20, u32::MAX), &query);
        let pdu = i.receive().unwrap();
        assert_eq!((pdu.opcode(), pdu.bhs.flags()), (0x24, 0x80));
        pdu.pairs().into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()
    };
    let own = [format!("TargetName={TARGET}"), format!("TargetAddress={},1", bench.address)];
    let told = ["TargetName=iqn.2026-01.test:told", "TargetAddress=10.0.2.2:3299,1", "TargetAddress=[fe80::7]:3260,1"];
    let mut i = bench.connect();
    i.discover();
    assert_eq!(ask(&mut i, "All"), [&own[..], &told.map(String::from)].concat());
    assert_eq!(ask(&mut i, "iqn.2026-01.test:told"), told);
    assert_eq!(ask(&mut i, "iqn.2026-01.test:hidden"), [""; 0]);
    assert_eq!(ask(&mut i, ""), ["SendTargets=Reject"]);
    // Nothing else is done in a discovery session.
    i.command(READ, 512, &read10(0, 1), &[]);
    assert_eq!(i.receive().unwrap().opcode(), 0x3f);
    let mut normal = bench.session(&[]);
    assert_eq!(ask(&mut normal, ""), own);
    assert_eq!(ask(&mut normal, "All"), ["SendTargets=Reject"]);
    assert_eq!(Initiator { name: "iqn.x".into(), ..bench.connect() }.login(&[]), 0);
}

#[test]
fn long_answers_come_in_pieces() {
    let bench = Bench::new();
    for n in 2..60 {
        let mut config = TargetConfig::new(format!("iqn.2026-01.test:long-name-number-{n}").parse().unwrap(), n);
        config.acl.push(AclRule::All);
        bench.service.create_target(config, std::sync::Arc::new(Device::default())).unwrap();
    }
    let mut i = bench.connect();
    let name = i.name.clone();
    i.login_step(0x87, &[("InitiatorName", &name), ("SessionType", "Discovery"), ("MaxRecvDataSegmentLength", "512")]);
    let mut query = Vec::new();
    text::push(&mut query, "SendTargets", "All");
    let (mut whole, mut tag, mut data) = (Vec::new(), u32::MAX, query);
    loop {
        i.send_numbered(Head::new(0x04, 0x80).word(16, 9).word(20, tag), &data);
        let pdu = i.receive().unwrap();
        whole.extend_from_slice(&pdu.data);
        if pdu.bhs.is_final() {
            break;
        }
        assert_eq!((pdu.bhs.flags(), pdu.data.len()), (0x40, 512));
        (tag, data) = (pdu.word(20), Vec::new());
    }
    assert_eq!(text::parse(&whole).unwrap().iter().filter(|(k, _)| k == "TargetName").count(), 59);
}

#[test]
fn a_session_is_reinstated_by_its_initiator() {
    let bench = Bench::new();
    let mut old = bench.session(&[]);
    old.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let (device, address) = (bench.device.clone(), bench.address);
    // The new session begins when the old one's commands have ended.
    let later = std::thread::spawn(move || {
        let mut new = Initiator::connect(address);
        (new.login(&[]), new)
    });
    assert!(old.closed() || later.is_finished() || device.lost.lock().is_empty());
    device.release(1);
    let (status, mut new) = later.join().unwrap();
    assert_eq!(status, 0);
    assert_ne!(new.tsih, old.tsih);
    assert_eq!(bench.device.lost.lock().iter().map(|n| n.tsih).collect::<Vec<_>>(), [old.tsih]);
    bench.until_sessions(1);
    assert_eq!(new.run(READ, 512, &read10(0, 1), &[]).0.status(), 0);
    // Another ISID is another session.
    let mut other = bench.connect();
    other.isid[5] = 9;
    assert_eq!(other.login(&[]), 0);
    bench.until_sessions(2);
}

#[test]
fn a_connection_is_reinstated_within_its_session() {
    let bench = Bench::new();
    let mut old = bench.session(&[("InitialR2T", "No")]);
    old.run(NONE, 0, &[0xc4, 1], &[]);
    let mut new = bench.connect();
    (new.tsih, new.cmd_sn) = (old.tsih, old.cmd_sn);
    assert_eq!(new.login(&[]), 0);
    assert_eq!(new.tsih, old.tsih);
    assert!(old.closed());
    assert!(bench.device.lost.lock().is_empty(), "the nexus lives on");
    assert_eq!(new.run(NONE, 0, &[0xc4, 2], &[]).0.status(), 0);
    assert_eq!(*bench.device.notes.lock(), [1, 2]);
    let info = bench.service.sessions(TARGET).unwrap();
    assert_eq!(info.len(), 1);
    assert!(info[0].negotiated.contains(&("InitialR2T", "No".into())));
    let mut wrong = bench.connect();
    wrong.tsih = old.tsih.wrapping_add(7);
    assert_eq!(wrong.login(&[]), 0x020a);
    let mut second = bench.connect();
    (second.tsih, second.cid) = (old.tsih, 5);
    assert_eq!(second.login(&[]), 0x0206);
}

#[test]
fn logout_of_every_kind() {
    let bench = Bench::new();
    for (reason, cid, answer, over) in [(0, 0, 0, true), (1, 0, 0, true), (1, 9, 1, false), (2, 0, 2, false)] {
        let mut i = bench.session(&[]);
        let tag = i.tag();
        i.send_numbered(Head::new(0x06, 0x80 | reason).word(16, tag).byte(21, cid), &[]);
        let pdu = i.receive().unwrap();
        assert_eq!((pdu.opcode(), pdu.bhs.task_tag(), pdu.bhs.0[2]), (0x26, tag, answer));
        if over {
            assert!(i.closed());
        } else {
            i.ping();
        }
        drop(i);
        bench.until_sessions(0);
    }
}

/// CID and times, as the message that drops its connection has them.
fn dropped(i: &Initiator) -> Vec<u8> {
    let answer = i.answer.as_ref().unwrap();
    let time = |key: &str, own: u16| answer.value(key).map_or(own, |v| v.parse().unwrap()).to_be_bytes();
    [i.cid.to_be_bytes(), time("DefaultTime2Wait", 2), time("DefaultTime2Retain", 20)].concat()
}

#[test]
fn the_administrator_ends_sessions_and_targets() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let sid = bench.service.sessions(TARGET).unwrap()[0].sid;
    assert_eq!(bench.service.drop_session(TARGET, sid + 1).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(bench.service.drop_connection(TARGET, sid, 3).unwrap_err().kind, ErrorKind::NotFound);
    bench.service.drop_session(TARGET, sid).unwrap();
    assert!(i.closed());
    let mut i = bench.connect();
    i.cid = 9;
    assert_eq!(i.login(&[("DefaultTime2Wait", "7"), ("DefaultTime2Retain", "11")]), 0);
    let told = dropped(&i);
    assert_eq!(told[..4], [0, 9, 0, 7]);
    assert_eq!(bench.service.remove_target(TARGET, false).unwrap_err().kind, ErrorKind::Busy);
    let sense = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 9, 0, 0, 0, 0];
    bench.service.report_lun_event(TARGET, [0, 1, 0, 0, 0, 0, 0, 0], &sense).unwrap();
    let news = i.receive().unwrap();
    assert_eq!((news.opcode(), news.bhs.0[36], news.bhs.0[9], news.data[1]), (0x32, 0, 1, 18));
    bench.service.remove_target(TARGET, true).unwrap();
    let news = i.receive().unwrap();
    assert_eq!((news.opcode(), news.bhs.0[36], &news.bhs.0[38..44]), (0x32, 2, &told[..]));
    assert!(i.closed());
    assert_eq!(bench.connect().login(&[]), 0x0203);
    assert_eq!(bench.device.lost.lock().len(), 2);
}

#[test]
fn what_storage_holds_on_to_is_not_said_to_be_over() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    i.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let sid = bench.service.sessions(TARGET).unwrap()[0].sid;
    let service = bench.service.clone();
    let dropping = std::thread::spawn(move || service.drop_session(TARGET, sid));
    assert!(i.closed());
    // Both wait for ten seconds and more.
    let gone = bench.service.remove_target(TARGET, true).unwrap_err();
    let dropped = dropping.join().unwrap().unwrap_err();
    assert_eq!((gone.kind, dropped.kind), (ErrorKind::Busy, ErrorKind::Busy));
    assert!(gone.text.contains("1 of its sessions"), "{gone}");
    assert!(dropped.text.contains(&format!("session {sid}")), "{dropped}");
    assert_eq!(bench.service.target(TARGET).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn of_two_that_take_a_session_over_the_last_has_it() {
    let bench = Bench::new();
    let mut old = bench.session(&[]);
    old.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let heirs: Vec<_> = (0..2)
        .map(|_| {
            let mut heir = bench.connect();
            (heir.tsih, heir.cmd_sn) = (old.tsih, old.cmd_sn);
            std::thread::spawn(move || {
                let name = heir.name.clone();
                let mut keys = Vec::new();
                for (key, value) in [("InitiatorName", name.as_str()), ("TargetName", TARGET)] {
                    text::push(&mut keys, key, value);
                }
                heir.send(heir.login_head(0x87), &keys);
                // Who is replaced at once may not even be answered.
                let status = heir.receive().ok().map(|pdu| u16::from_be_bytes([pdu.bhs.0[36], pdu.bhs.0[37]]));
                (status, heir)
            })
        })
        .collect();
    // That both wait is not known; it must be right whether they do or not.
    std::thread::sleep(Duration::from_millis(200));
    bench.device.release(1);
    let mut heirs: Vec<_> = heirs.into_iter().map(|heir| heir.join().unwrap()).collect();
    let mut working = 0;
    for (status, heir) in &mut heirs {
        assert!(matches!(status, None | Some(0)), "{status:04x?}");
        let (_, head) = heir.command_head(NONE, 0, &[0xc4, 1]);
        let bytes = heir.bytes_of(head.word(24, heir.cmd_sn), &[], &[]);
        // Whether it is heard shows in the answer.
        let _ = heir.stream.write_all(&bytes);
        working += usize::from(heir.receive().is_ok());
    }
    assert_eq!(working, 1);
    until(|| bench.service.connections() == 1);
    assert!(bench.device.lost.lock().is_empty());
}

#[test]
fn shutdown_asks_for_logout() {
    let bench = Bench::new();
    let mut polite = bench.session(&[]);
    let mut deaf = Initiator { name: "iqn.2026-01.test:deaf".into(), cid: 4, ..bench.connect() };
    assert_eq!(deaf.login(&[]), 0);
    let service = bench.service.clone();
    let stopping = std::thread::spawn(move || service.shutdown(Duration::from_secs(60)));
    for asked in [&mut polite, &mut deaf] {
        let news = asked.receive().unwrap();
        assert_eq!((news.opcode(), news.bhs.0[36], &news.bhs.0[42..44]), (0x32, 1, &[0, 60][..]));
    }
    polite.send_numbered(Head::new(0x06, 0x80).word(16, 5), &[]);
    assert_eq!(polite.receive().unwrap().opcode(), 0x26);
    // Who does not do so in time is told that it is dropped.
    bench.service.advance_clock(Duration::from_secs(61));
    let news = deaf.receive().unwrap();
    assert_eq!((news.opcode(), news.bhs.0[36], &news.bhs.0[38..44]), (0x32, 2, &dropped(&deaf)[..]));
    assert!(deaf.closed());
    stopping.join().unwrap();
    assert_eq!(bench.service.connections(), 0);
    assert!(std::net::TcpStream::connect(bench.address).is_err());
}

#[test]
fn portals_come_and_go() {
    let bench = Bench::new();
    assert_eq!(bench.service.add_portal(bench.address, 1).unwrap_err().kind, ErrorKind::Exists);
    let second = bench.service.add_portal("127.0.0.1:0".parse().unwrap(), 2).unwrap();
    let mut i = Initiator::connect(second);
    assert_eq!(i.login(&[]), 0);
    assert_eq!(i.answer.as_ref().unwrap().value("TargetPortalGroupTag").unwrap(), "2");
    bench.service.remove_portal(second).unwrap();
    assert!(std::net::TcpStream::connect(second).is_err());
    i.ping();
    assert_eq!(bench.service.remove_portal(second).unwrap_err().kind, ErrorKind::NotFound);
    if let Ok(six) = bench.service.add_portal("[::1]:0".parse().unwrap(), 3) {
        assert_eq!(Initiator { name: "iqn.six".into(), ..Initiator::connect(six) }.login(&[]), 0);
    }
}

#[test]
fn a_session_whose_heir_gave_up_ends() {
    // Enough for a login on a busy machine; those that wait for the session before take all of it.
    let bench = Bench::with(|l| l.login_timeout = Duration::from_secs(6), |_| ());
    let mut old = bench.session(&[]);
    old.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    for tsih in [old.tsih, 0] {
        let mut new = bench.connect();
        new.tsih = tsih;
        assert_eq!(new.login(&[]), 0x0302, "a command of the session before is under way");
    }
    bench.device.release(1);
    bench.until_sessions(0);
    assert_eq!(bench.connect().login(&[]), 0);
}
