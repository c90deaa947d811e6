//! The contents of volumes over the interface, with the engine itself: what arrives, what is refused, who is kept out.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use qrvsa_api::names::FsName;
use qrvsa_api::transfer::{READ_BYTES_MAX, RecordHead};
use qrvsa_api::*;
use support::TestDaemon;

const MIB: u64 = 1 << 20;

fn name(text: &str) -> FsName {
    text.parse().unwrap()
}

fn make(client: &Client, volume: &str, size_bytes: u64) -> FsName {
    let request =
        CreateVolume { name: volume.into(), size_bytes, block_bytes: 512, record_bytes: 16 << 10, reserve: false };
    client.create_volume("tank", &request).unwrap().name
}

/// Sends a body to fill a volume with, in chunks of 7,000 bytes, and closes the sending side without the last chunk if it is
/// `cut`; the status and the answer.
fn put(daemon: &TestDaemon, path: &str, body: &[u8], cut: bool) -> (u16, serde_json::Value) {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut bytes = head.into_bytes();
    for chunk in body.chunks(7000) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    if !cut {
        bytes.extend(b"0\r\n\r\n");
    }
    let _ = stream.write_all(&bytes);
    if cut {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, serde_json::Value::Null) };
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn record(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&RecordHead { offset, length: bytes.len() as u64 }.encode()[..], bytes].concat()
}

fn last(sum: u64) -> Vec<u8> {
    RecordHead { offset: sum, length: 0 }.encode().to_vec()
}

#[test]
fn what_is_written_is_read() {
    let daemon = TestDaemon::with_engine("tank");
    let client = daemon.client();
    let volume = make(&client, "v", 64 * MIB + 512);
    let empty = client.volume_extents(&volume, 0).unwrap();
    assert_eq!(empty, VolumeExtents { size_bytes: 64 * MIB + 512, data: vec![], next_bytes: 64 * MIB + 512 });

    let mut fill = client.fill_volume(&volume, false);
    let long = vec![7; 5 << 20];
    fill.write(3 * MIB + 100, &long).unwrap();
    fill.write(40 * MIB, b"abc").unwrap();
    fill.write(64 * MIB + 511, b"z").unwrap();
    assert_eq!(fill.finish().unwrap().written_bytes, (5 << 20) + 4);

    assert!(client.read_volume(&volume, 3 * MIB + 100, 4 << 20).unwrap() == long[..4 << 20]);
    assert_eq!(&client.read_volume(&volume, 8 * MIB + 99, 2).unwrap()[..], [7, 0]);
    assert_eq!(&client.read_volume(&volume, 40 * MIB - 1, 5).unwrap()[..], b"\0abc\0");
    assert_eq!(&client.read_volume(&volume, 64 * MIB + 511, 1).unwrap()[..], b"z");
    assert_eq!(client.read_volume(&volume, 64 * MIB + 512, 0).unwrap().len(), 0);
    let extents = client.volume_extents(&volume, 0).unwrap();
    assert_eq!(extents.next_bytes, extents.size_bytes);
    let runs: Vec<_> = extents.data.iter().map(|run| (run.offset_bytes, run.length_bytes)).collect();
    assert_eq!(runs, [(3 * MIB, 5 * MIB + 4096), (40 * MIB, 4096), (64 * MIB, 512)]);
    let rest = client.volume_extents(&volume, 5 * MIB).unwrap();
    assert_eq!((rest.data[0].offset_bytes, rest.data.len()), (5 * MIB, 3));

    // Over data only with force, and nothing of it stays.
    let refused = client.fill_volume(&volume, false).finish().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NeedsForce);
    assert_eq!(&client.read_volume(&volume, 40 * MIB, 3).unwrap()[..], b"abc");
    let mut fill = client.fill_volume(&volume, true);
    fill.write(10, b"new").unwrap();
    fill.finish().unwrap();
    let extents = client.volume_extents(&volume, 0).unwrap();
    assert_eq!((extents.data.len(), &client.read_volume(&volume, 10, 3).unwrap()[..]), (1, &b"new"[..]));
}

#[test]
fn many_runs_are_told_in_parts() {
    let daemon = TestDaemon::with_engine("tank");
    let client = daemon.client();
    let volume = make(&client, "v", 64 * MIB);
    let mut fill = client.fill_volume(&volume, false);
    for i in 0..5000 {
        fill.write(i * 8192, b"x").unwrap();
    }
    fill.finish().unwrap();
    let (mut at, mut runs, mut answers) = (0, 0, 0);
    while at < 64 * MIB {
        let part = client.volume_extents(&volume, at).unwrap();
        assert!(part.next_bytes > at);
        (at, runs, answers) = (part.next_bytes, runs + part.data.len(), answers + 1);
    }
    assert_eq!((runs, answers), (5000, 2));
}

#[test]
fn bad_requests() {
    let daemon = TestDaemon::with_engine("tank");
    let client = daemon.client();
    let volume = make(&client, "v", MIB);
    let path = "/v1/pools/tank/volumes/v/data";
    let none: FsName = name("tank/none");
    assert_eq!(client.volume_extents(&none, 0).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.read_volume(&none, 0, 1).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.volume_extents(&volume, MIB + 1).unwrap_err().kind, ErrorKind::Invalid);
    for (offset, length) in [(MIB, 1), (0, MIB + 1), (u64::MAX, 1), (1, u64::MAX), (0, READ_BYTES_MAX + 1)] {
        assert_eq!(client.read_volume(&volume, offset, length).unwrap_err().kind, ErrorKind::Invalid, "{offset}");
    }
    for query in ["", "?offset=-1", "?offset=x&length=1"] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        write!(stream, "GET {path}{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"kind\":\"invalid\""), "{answer}");
    }
    let claim = |offset, length| RecordHead { offset, length }.encode().to_vec();
    for (body, status, what) in [
        (record(MIB, b"x"), 400, "beyond the end"),
        (record(MIB - 1, b"xy"), 400, "beyond the end"),
        (claim(u64::MAX, 2), 400, "beyond the end"),
        (claim(0, u64::MAX), 400, "beyond the end"),
        (last(1), 400, "bytes were to be written, 0 came"),
        ([record(0, b"xy"), last(3)].concat(), 400, "3 bytes were to be written, 2 came"),
        (Vec::new(), 503, "broken off"),
        (claim(0, 10)[..9].to_vec(), 503, "broken off"),
        (claim(0, 10), 503, "broken off"),
        (record(0, b"xy"), 503, "broken off"),
    ] {
        let (got, answer) = put(&daemon, &format!("{path}?force=true"), &body, false);
        assert_eq!(got, status, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(what), "{answer}");
    }
    // What comes behind the last record is not looked at.
    let body = [record(5, b"xy"), last(2), vec![9; 100_000]].concat();
    assert_eq!(put(&daemon, &format!("{path}?force=true"), &body, false).0, 200);
    assert_eq!(&client.read_volume(&volume, 4, 4).unwrap()[..], b"\0xy\0");
    // A sender that goes away frees the volume.
    put(&daemon, &format!("{path}?force=true"), &[record(0, b"gone"), claim(4, 1000)].concat(), true);
    support::eventually("the volume is free", || client.destroy_volume(&volume, true).is_ok());
}

#[test]
fn an_answer_that_comes_early_arrives() {
    let daemon = TestDaemon::with_engine("tank");
    let client = daemon.client();
    let volume = make(&client, "v", 100 * MIB);
    for (target, force, kind) in [
        (name("tank/none"), true, ErrorKind::NotFound),
        (name("none/v"), true, ErrorKind::NotFound),
        (volume.clone(), false, ErrorKind::NeedsForce),
    ] {
        let mut first = client.fill_volume(&volume, true);
        first.write(0, b"x").unwrap();
        first.finish().unwrap();
        let mut fill = client.fill_volume(&target, force);
        let piece = vec![1; 1 << 20];
        let error = (0..100).find_map(|i| fill.write(i * MIB, &piece).err());
        assert_eq!(error.expect("it is refused before its end").kind, kind);
        fill.abandon();
    }
}

#[test]
fn who_fills_a_volume_is_alone() {
    let daemon = TestDaemon::with_engine("tank");
    let (client, other) = (daemon.client(), daemon.client());
    let volume = make(&client, "v", 64 * MIB);
    // A port that is free may be somebody else's a moment later.
    support::eventually("a target on a free port", || {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target = CreateTarget {
            iqn: "iqn.2026-01.test:v".into(),
            tid: None,
            portals: vec![format!("127.0.0.1:{port}")],
            advertise: vec![],
        };
        match other.create_target(&target) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Busy, "{error}");
                false
            }
        }
    });
    let lun = AddLun { lun: None, source: LunSource::Volume(volume.clone()), options: LunOptions::default() };

    let mut fill = client.fill_volume(&volume, false);
    // More than fits between here and there: it has begun when this is through.
    for i in 0..16 {
        fill.write(i * MIB, &vec![1; 1 << 20]).unwrap();
    }
    assert!(other.volume(&volume).unwrap().in_use);
    let size = ResizeVolume { size_bytes: 128 * MIB, force: false };
    for error in [
        other.fill_volume(&volume, true).finish().unwrap_err(),
        other.destroy_volume(&volume, true).unwrap_err(),
        other.resize_volume(&volume, &size).unwrap_err(),
        other.export_pool("tank", true).unwrap_err(),
        other.destroy_pool("tank", true).unwrap_err(),
        other.add_lun("iqn.2026-01.test:v", &lun).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
        assert!(error.message.contains("being filled"), "{error}");
    }
    fill.finish().unwrap();
    assert!(!other.volume(&volume).unwrap().in_use);

    let number = other.add_lun("iqn.2026-01.test:v", &lun).unwrap().lun;
    let error = client.fill_volume(&volume, true).finish().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains("iqn.2026-01.test:v"), "{error}");
    other.remove_lun("iqn.2026-01.test:v", number).unwrap();
    let mut fill = client.fill_volume(&volume, true);
    fill.write(0, b"again").unwrap();
    fill.abandon();
    client.fill_volume(&volume, true).finish().unwrap();
}

#[test]
fn the_daemons_end_does_not_wait_for_a_sender() {
    let mut daemon = TestDaemon::with_engine("tank");
    let client = daemon.client();
    let volume = make(&client, "v", 64 * MIB);
    let mut fill = client.fill_volume(&volume, false);
    for i in 0..8 {
        fill.write(i * MIB, &vec![1; 1 << 20]).unwrap();
    }
    daemon.stop();
    let error = (0..100).find_map(|_| fill.write(0, &vec![1; 1 << 20]).err()).expect("nobody is there");
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Unreachable), "{error}");
}
