//! Peers that are malicious, broken, slow or gone: they harm themselves alone.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use support::{Bench, Head, Initiator, NONE, READ, TARGET, WRITE, pattern, read10, until, write10};

fn works(i: &mut Initiator) {
    assert_eq!(i.run(READ, 512, &read10(0, 1), &[]).0.status(), 0);
}

#[test]
fn a_thousand_half_open_logins_keep_nobody_out() {
    let bench = Bench::with(|l| l.half_open_max = 50, |_| ());
    let mut witness = bench.session(&[]);
    let crowd: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(bench.address).unwrap()).collect();
    works(&mut witness);
    let mut late = Initiator { name: "iqn.late".into(), ..bench.connect() };
    assert_eq!(late.login(&[]), 0);
    works(&mut late);
    drop(crowd);
    works(&mut witness);
}

#[test]
fn a_login_has_its_time() {
    let bench = Bench::with(|l| l.login_timeout = Duration::from_millis(200), |_| ());
    let mut silent = bench.connect();
    let mut half = bench.connect();
    half.stream.write_all(&[0x43; 30]).unwrap();
    assert!(silent.closed() && half.closed());
}

#[test]
fn malformed_and_oversized_pdus() {
    let bench = Bench::new();
    let mut witness = bench.session(&[]);
    let stranger = |n: u8| {
        let mut i = Initiator { name: format!("iqn.stranger-{n}"), ..bench.connect() };
        assert_eq!(i.login(&[]), 0);
        i
    };
    // Before the login: no login, additional headers, too long.
    for bytes in [
        [0u8; 48].to_vec(),
        [&[0x43, 0x87, 0, 0, 9][..], &[0; 43]].concat(),
        vec![0x43, 0x87, 0, 0, 0, 0xff, 0xff, 0xff],
    ] {
        let mut i = bench.connect();
        i.stream.write_all(&[bytes, vec![0; 48]].concat()).unwrap();
        assert!(i.closed());
    }
    // Longer than declared; a login in the full feature phase; too many additional headers.
    for (n, head) in
        [(1, Head::new(0x05, 0x80).byte(5, 0xff)), (2, Head::new(0x43, 0x87)), (3, Head::new(0x01, 0x80).byte(4, 0xff))]
    {
        let mut i = stranger(n);
        i.stream.write_all(&head.0).unwrap();
        assert!(i.closed(), "{n}");
    }
    // Unknown opcodes and SNACK are rejected, and the session goes on.
    let mut i = stranger(4);
    for (opcode, reason) in [(0x1c, 5), (0x3f, 5), (0x21, 5), (0x10, 3)] {
        i.send(Head::new(opcode, 0x80).word(24, i.cmd_sn), &[]);
        let pdu = i.receive().unwrap();
        assert_eq!((pdu.opcode(), pdu.bhs.0[2]), (0x3f, reason));
    }
    // Data for no task is ignored, a tag in use is not taken twice.
    i.data_out(0x1234, 0x5678, 0, 0, true, &[1; 512]);
    let tag = i.command(WRITE, 1 << 20, &write10(0, 2048), &[]);
    assert_eq!(i.receive().unwrap().opcode(), 0x31);
    let (_, head) = i.command_head(NONE, 0, &[0]);
    i.send_numbered(head.word(16, tag), &[]);
    let pdu = i.receive().unwrap();
    assert_eq!((pdu.opcode(), pdu.bhs.0[2]), (0x3f, 7));
    works(&mut i);
    works(&mut witness);
}

#[test]
fn broken_digests() {
    let bench = Bench::new();
    for data in [false, true] {
        let mut i = bench.session(&[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]);
        let (_, head) = i.command_head(WRITE, 512, &write10(0, 1));
        let mut bytes = i.bytes_of(head.word(24, i.cmd_sn), &[], &[7; 512]);
        let at = if data { 100 } else { 20 };
        bytes[at] ^= 1;
        i.stream.write_all(&bytes).unwrap();
        if data {
            let pdu = i.receive().unwrap();
            assert_eq!((pdu.opcode(), pdu.bhs.0[2]), (0x3f, 2));
        }
        assert!(i.closed());
    }
    assert!(bench.device.medium.lock().iter().all(|b| *b == 0));
}

#[test]
fn a_reader_that_takes_nothing_is_dropped_and_costs_little() {
    let bench = Bench::with(
        |l| {
            l.data_in_bytes_max = 1 << 20;
            l.stall_timeout = Duration::from_millis(500);
        },
        |_| (),
    );
    let mut witness = Initiator { name: "iqn.witness".into(), ..bench.connect() };
    assert_eq!(witness.login(&[]), 0);
    for at_once in [true, false] {
        bench.device.at_once.store(at_once, Ordering::SeqCst);
        let mut deaf = bench.session(&[]);
        // In one piece: nobody knows when it is dropped.
        let mut commands = Vec::new();
        for _ in 0..100 {
            let (_, head) = deaf.command_head(READ, 4 << 20, &read10(0, 8192));
            commands.extend(deaf.bytes_of(head.word(24, deaf.cmd_sn), &[], &[]));
            deaf.cmd_sn += 1;
        }
        deaf.stream.write_all(&commands).unwrap();
        works(&mut witness);
        // It goes away although it never reads and never closes.
        bench.until_sessions(1);
        assert!(deaf.closed());
    }
}

#[test]
fn a_reader_that_is_slow_gets_all() {
    let bench = Bench::with(|l| l.data_in_bytes_max = 1 << 20, |_| ());
    bench.device.medium.lock().copy_from_slice(&pattern(8 << 20, 1));
    for at_once in [true, false] {
        bench.device.at_once.store(at_once, Ordering::SeqCst);
        let mut i = bench.session(&[]);
        let tags: Vec<u32> = (0..40).map(|_| i.command(READ, 1 << 20, &read10(2048, 2048), &[])).collect();
        let mut got: std::collections::BTreeMap<u32, usize> = tags.iter().map(|t| (*t, 0)).collect();
        let mut left = tags.len();
        while left > 0 {
            let pdu = i.receive().unwrap();
            let count = got.get_mut(&pdu.bhs.task_tag()).unwrap();
            let at = (1 << 20) + *count;
            assert!(bench.device.medium.lock()[at..at + pdu.data.len()] == pdu.data);
            *count += pdu.data.len();
            left -= usize::from(pdu.bhs.flags() & 1 != 0);
        }
        assert!(got.values().all(|count| *count == 1 << 20));
    }
}

#[test]
fn a_writer_that_never_sends_is_dropped() {
    let bench = Bench::with(|l| l.stall_timeout = Duration::from_millis(300), |_| ());
    let mut i = bench.session(&[]);
    i.command(WRITE, 1 << 20, &write10(0, 2048), &[]);
    assert!(i.closed());
    bench.until_sessions(0);
}

#[test]
fn memory_for_data_out_is_bounded_and_all_writes_end() {
    let bench = Bench::with(|l| l.data_out_bytes_max = 1 << 20, |_| ());
    let mut sessions: Vec<(Initiator, Vec<u32>)> = (0..4)
        .map(|n| {
            let mut i = Initiator { name: format!("iqn.writer-{n}"), ..bench.connect() };
            assert_eq!(i.login(&[("InitialR2T", "Yes"), ("MaxBurstLength", "1048576")]), 0);
            let tags = (0..8).map(|_| i.command(WRITE, 1 << 20, &write10(0, 2048), &[])).collect();
            (i, tags)
        })
        .collect();
    // Nobody is asked for more than there is memory for; who has some gives it back in the end.
    let data = pattern(1 << 20, 9);
    std::thread::scope(|scope| {
        for (i, tags) in &mut sessions {
            let data = &data;
            scope.spawn(move || {
                let mut left = tags.len();
                while left > 0 {
                    let pdu = i.receive().unwrap();
                    if pdu.opcode() == 0x21 {
                        assert_eq!(pdu.status(), 0);
                        left -= 1;
                        continue;
                    }
                    let (tag, at, bytes) = (pdu.bhs.task_tag(), pdu.word(40), pdu.word(44) as usize);
                    for (n, part) in data[at as usize..at as usize + bytes].chunks(256 << 10).enumerate() {
                        let offset = at + u32::try_from(n).unwrap() * (256 << 10);
                        let last = offset as usize + part.len() == at as usize + bytes;
                        i.data_out(tag, pdu.word(20), n.try_into().unwrap(), offset, last, part);
                    }
                }
            });
        }
    });
    assert_eq!(bench.device.medium.lock()[..1 << 20], data);
}

#[test]
fn unasked_data_beyond_the_bound_gets_task_set_full() {
    let bench = Bench::with(|l| l.data_out_bytes_max = 64 << 10, |_| ());
    let mut i = bench.session(&[("InitialR2T", "No"), ("FirstBurstLength", "65536")]);
    let mut tags = Vec::new();
    for _ in 0..4 {
        tags.push(i.command(WRITE & !0x80, 65_536, &write10(0, 128), &[]));
    }
    i.ping();
    // Two fit; the others are told, behind their data, that they did not when they came.
    for (n, tag) in tags.iter().enumerate() {
        i.data_out(*tag, u32::MAX, 0, 0, true, &[3; 65_536]);
        assert_eq!(i.finish(*tag).0.status(), if n < 2 { 0 } else { 0x28 });
    }
    works(&mut i);
}

#[test]
fn initiators_that_vanish() {
    let bench = Bench::new();
    for n in 0..20 {
        let mut i = bench.session(&[("InitialR2T", "No")]);
        match n % 4 {
            0 => drop(i.command(NONE, 0, &[0xc0], &[])),
            1 => drop(i.command(WRITE, 1 << 20, &write10(0, 2048), &[])),
            2 => i.stream.write_all(&[1; 20]).unwrap(),
            _ => {
                for _ in 0..50 {
                    i.command(READ, 1 << 20, &read10(0, 2048), &[]);
                }
            }
        }
        drop(i);
        bench.device.release(1);
    }
    bench.device.release_all();
    bench.until_sessions(0);
    until(|| bench.device.lost.lock().len() == 20);
    works(&mut bench.session(&[]));
}

#[test]
fn pings_find_the_dead() {
    let bench = Bench::with(
        |_| (),
        |t| {
            t.nop_interval = Duration::from_secs(1000);
            t.nop_count = 2;
        },
    );
    let mut i = bench.session(&[]);
    let ping = |i: &mut Initiator| {
        bench.service.advance_clock(Duration::from_secs(1001));
        let ping = i.receive().unwrap();
        assert_eq!((ping.opcode(), ping.bhs.task_tag()), (0x20, u32::MAX));
        ping
    };
    // Answers keep the session.
    for _ in 0..6 {
        let ping = ping(&mut i);
        i.send(Head::new(0x40, 0x80).word(16, u32::MAX).word(20, ping.word(20)).word(24, i.cmd_sn), &[]);
        // once this is answered, the answer has been seen, and the next interval begins
        i.ping();
    }
    works(&mut i);
    assert_eq!(bench.service.sessions(support::TARGET).unwrap().len(), 1);
    ping(&mut i);
    ping(&mut i);
    bench.service.advance_clock(Duration::from_secs(1001));
    assert!(i.closed(), "no answer");
}

#[test]
fn two_hundred_sessions_side_by_side() {
    let bench = Bench::new();
    // Both ends are in this process, and it may have no more than 1024 descriptors.
    let count = 200;
    let mut all: Vec<Initiator> = (0..count)
        .map(|n| {
            let mut i = Initiator { name: format!("iqn.idle-{n}"), ..bench.connect() };
            assert_eq!(i.login(&[]), 0);
            i
        })
        .collect();
    bench.until_sessions(count);
    for i in &mut all {
        works(i);
    }
    drop(all);
    bench.until_sessions(0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_after_the_login(chunks in prop::collection::vec(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..120),
        // Nearly right headers get further.
        (0..8u8, any::<u8>(), 0..4u8, prop::collection::vec(any::<u8>(), 40)).prop_map(|(opcode, flags, words, rest)| {
            let mut bytes = vec![opcode | 0x40, flags, 0, 0, 0, 0, 0, words * 4];
            bytes.extend(rest);
            bytes.resize(48 + usize::from(words) * 4, 0);
            // No command of the device that waits for ever.
            if bytes[32] == 0xc0 { bytes[32] = 0 }
            if matches!(bytes[32], 0x28 | 0x2a | 0xc1) { bytes[32] = 0xc2 }
            bytes
        }),
    ], 1..20)) {
        let bench = Bench::new();
        let mut witness = Initiator { name: "iqn.witness".into(), ..bench.connect() };
        prop_assert_eq!(witness.login(&[]), 0);
        let mut i = bench.session(&[]);
        for chunk in chunks {
            if i.stream.write_all(&chunk).is_err() {
                break;
            }
        }
        i.stream.shutdown(std::net::Shutdown::Write).unwrap_or(());
        prop_assert!(i.closed());
        works(&mut witness);
    }
}

#[test]
fn commands_ahead_of_a_gap_take_little_memory() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    i.cmd_sn += 1; // this one never comes
    let ping = [7; 32 << 10];
    for _ in 0..100 {
        let tag = i.tag();
        let bytes = i.bytes_of(Head::new(0x00, 0x80).word(16, tag).word(20, u32::MAX).word(24, i.cmd_sn), &[], &ping);
        i.cmd_sn += 1;
        if i.stream.write_all(&bytes).is_err() {
            break;
        }
    }
    assert!(i.closed(), "3 MiB that wait for a turn that never comes");
    bench.until_sessions(0);
}

#[test]
fn refused_commands_whose_data_never_comes_are_bounded_and_have_their_time() {
    let bench = Bench::new();
    let mut i = bench.session(&[("InitialR2T", "Yes")]);
    for _ in 0..2000 {
        let (_, head) = i.command_head(WRITE & 0x7f, 512, &write10(0, 1));
        let bytes = i.bytes_of(head.word(24, i.cmd_sn), &[], &[]);
        i.cmd_sn += 1;
        i.stream.write_all(&bytes).unwrap();
    }
    // They wait for the end of their data, which takes room in the window.
    let pdu = i.ping();
    assert_eq!(pdu.word(28), pdu.word(32).wrapping_add(1));
    assert_eq!(bench.service.sessions(TARGET).unwrap()[0].connections[0].commands_outstanding, 128);
    bench.service.advance_clock(Duration::from_secs(61));
    assert!(i.closed());
    bench.until_sessions(0);
}

#[test]
fn a_writer_that_sends_next_to_nothing_is_dropped() {
    let bench = Bench::with(|l| l.stall_timeout = Duration::from_secs(10_000), |_| ());
    let mut i = bench.session(&[]);
    let tag = i.command(WRITE, 1 << 20, &write10(0, 2048), &[]);
    let r2t = i.receive().unwrap();
    bench.service.advance_clock(Duration::from_secs(6000));
    i.data_out(tag, r2t.word(20), 0, 0, false, &[1]);
    i.ping();
    bench.service.advance_clock(Duration::from_secs(6000));
    assert!(i.closed());
    bench.until_sessions(0);
}

#[test]
fn a_writer_that_does_not_go_on_keeps_nobody_from_writing() {
    let bench = Bench::with(
        |l| {
            l.data_out_bytes_max = 4 << 20;
            l.stall_timeout = Duration::from_secs(10_000);
        },
        |_| (),
    );
    let mut hog = bench.session_of("iqn.hog", &[("MaxBurstLength", "1048576")]);
    for _ in 0..8 {
        hog.command(WRITE, 1 << 20, &write10(0, 2048), &[]);
    }
    for _ in 0..5 {
        assert_eq!(hog.receive().unwrap().opcode(), 0x31);
    }
    let data = pattern(1 << 20, 9);
    let mut i = bench.session(&[("MaxBurstLength", "1048576")]);
    for _ in 0..3 {
        let tag = i.command(WRITE, 1 << 20, &write10(0, 2048), &[]);
        let r2t = i.receive().unwrap();
        assert_eq!((r2t.opcode(), r2t.word(44)), (0x31, 1 << 20));
        for (n, part) in data.chunks(256 << 10).enumerate() {
            let n = u32::try_from(n).unwrap();
            i.data_out(tag, r2t.word(20), n, n << 18, n == 3, part);
        }
        assert_eq!(i.finish(tag).0.status(), 0);
    }
    assert_eq!(bench.device.medium.lock()[..1 << 20], data);
}

#[test]
fn a_unit_that_hangs_holds_up_no_other() {
    let bench = Bench::with(|l| l.workers_max = 2, |_| ());
    let slow = |i: &mut Initiator, lun: u8| {
        let (tag, head) = i.command_head(NONE, 0, &[0xc0]);
        i.send_numbered(head.lun(lun), &[]);
        tag
    };
    let mut i = bench.session(&[]);
    // It is known to be slow from now on.
    let tag = slow(&mut i, 2);
    bench.device.until_waiting(1);
    i.ping();
    bench.device.release(1);
    assert_eq!(i.finish(tag).0.status(), 0);
    let mut hog = bench.session_of("iqn.hog", &[]);
    for _ in 0..10 {
        slow(&mut hog, 1);
    }
    // One on the connection's own thread, two on others.
    bench.device.until_waiting(3);
    slow(&mut i, 2);
    bench.device.until_waiting(4);
    // Who waits for the unit that hangs, and has not begun, can leave.
    let mut late = bench.session_of("iqn.late", &[]);
    let first = slow(&mut late, 3);
    bench.device.until_waiting(5);
    late.ping();
    for _ in 0..3 {
        slow(&mut late, 1);
    }
    late.ping();
    let request = late.tag();
    late.send(Head::new(0x42, 0x81).lun(1).word(16, request).word(20, first + 2).word(24, late.cmd_sn), &[]);
    let pdu = late.receive().unwrap();
    assert_eq!((pdu.opcode(), pdu.bhs.task_tag(), pdu.bhs.0[2]), (0x22, request, 0));
    late.ping();
    let outstanding = |name: &str| {
        let sessions = bench.service.sessions(TARGET).unwrap();
        sessions.iter().find(|s| s.initiator_name == name).unwrap().connections[0].commands_outstanding
    };
    assert_eq!(outstanding("iqn.late"), 3, "the aborted one is gone");
}

#[test]
fn who_waits_for_a_unit_that_hangs_can_leave() {
    let bench = Bench::with(|l| l.workers_max = 2, |_| ());
    let mut late = bench.session_of("iqn.late", &[]);
    let tag = late.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    late.ping();
    bench.device.release(1);
    assert_eq!(late.finish(tag).0.status(), 0);
    let mut hog = bench.session_of("iqn.hog", &[]);
    for _ in 0..10 {
        hog.command(NONE, 0, &[0xc0], &[]);
    }
    bench.device.until_waiting(3);
    for _ in 0..5 {
        late.command(NONE, 0, &[0xc0], &[]);
    }
    late.ping();
    drop(late);
    bench.until_sessions(1);
    assert_eq!(bench.device.waiting.load(Ordering::SeqCst), 3);
}

#[test]
fn task_management_that_waits_is_bounded() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    i.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    for _ in 0..100 {
        i.manage(2, u32::MAX, 0);
    }
    for _ in 0..36 {
        let pdu = i.receive().unwrap();
        assert_eq!((pdu.opcode(), pdu.bhs.0[2]), (0x3f, 6), "too many immediate commands");
    }
    bench.device.release(1);
    for _ in 0..64 {
        assert_eq!(i.receive().unwrap().opcode(), 0x22);
    }
    works(&mut i);
}

#[test]
fn answers_that_are_asked_for_over_and_over_stay_bounded() {
    let bench = Bench::new();
    let mut i = bench.connect();
    i.discover();
    let text = b"SendTargets=All\0".repeat(1000);
    let (mut tag, mut rejected) = (u32::MAX, false);
    for _ in 0..300 {
        let head = Head::new(0x44, 0x00).word(16, 9).word(20, tag).word(24, i.cmd_sn);
        i.send(head, &text);
        let pdu = i.receive().unwrap();
        if pdu.opcode() == 0x3f {
            rejected = true;
            break;
        }
        tag = pdu.word(20);
    }
    assert!(rejected, "300 times 1,000 lists wait to be fetched");
    i.ping();
}

#[test]
fn a_process_that_stood_still_gives_its_peers_time_to_answer() {
    let bench = Bench::with(|_| (), |t| (t.nop_interval, t.nop_count) = (Duration::from_secs(1000), 3));
    let mut i = bench.session(&[]);
    i.ping();
    for _ in 0..3 {
        bench.service.advance_clock(Duration::from_secs(100_000));
        let ping = i.receive().unwrap();
        assert_eq!((ping.opcode(), ping.bhs.task_tag()), (0x20, u32::MAX));
        works(&mut i);
    }
    // Who does not answer is given up, one interval after the other.
    for _ in 0..3 {
        bench.service.advance_clock(Duration::from_secs(1001));
        assert_eq!(i.receive().unwrap().opcode(), 0x20);
    }
    bench.service.advance_clock(Duration::from_secs(1001));
    assert!(i.closed());
}

#[test]
fn a_session_that_is_closed_just_when_its_command_ends_is_over() {
    let bench = Bench::new();
    for _ in 0..300 {
        let mut i = bench.session(&[]);
        let sid = bench.service.sessions(TARGET).unwrap()[0].sid;
        i.command(NONE, 0, &[0xc0], &[]);
        bench.device.until_waiting(1);
        std::thread::scope(|scope| {
            scope.spawn(|| bench.service.drop_session(TARGET, sid));
            bench.device.release(1);
        });
        bench.until_sessions(0);
    }
}
