//! Commands and their data on real connections: every way that data-out can come, how data-in is cut, residuals, sequence numbers.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use support::{Bench, Initiator, NONE, READ, WRITE, pattern, read10, write10};

const NO: u32 = u32::MAX;

#[test]
fn reads_are_cut_and_end_with_their_status() {
    let bench = Bench::new();
    bench.device.medium.lock().copy_from_slice(&pattern(16 << 20 >> 1, 3));
    for (at_once, lends) in [(true, false), (false, false), (false, true)] {
        bench.device.at_once.store(at_once, Ordering::SeqCst);
        bench.device.lends.store(lends, Ordering::SeqCst);
        let mut i = bench.session(&[("MaxRecvDataSegmentLength", "4096"), ("MaxBurstLength", "8192")]);
        let tag = i.command(READ, 20_480, &read10(1, 40), &[]);
        let mut data = Vec::new();
        for n in 0..5 {
            let pdu = i.receive().unwrap();
            assert_eq!((pdu.bhs.task_tag(), pdu.opcode(), pdu.word(36)), (tag, 0x25, n));
            // The final bit ends each burst of 8192 bytes, and the whole.
            assert_eq!(pdu.bhs.is_final(), n % 2 == 1 || n == 4);
            assert_eq!(pdu.bhs.flags() & 1 != 0, n == 4);
            data.extend(pdu.data);
        }
        assert_eq!(data, bench.device.medium.lock()[512..512 + 20_480]);
        let (end, long) = i.run(READ, 1 << 20, &read10(0, 2048), &[]);
        assert_eq!((end.status(), long.len()), (0, 1 << 20));
        assert_eq!(long, bench.device.medium.lock()[..1 << 20]);
    }
}

#[test]
fn what_is_lent_arrives_with_digests_and_without() {
    let bench = Bench::new();
    bench.device.medium.lock().copy_from_slice(&pattern(16 << 20 >> 1, 3));
    bench.device.at_once.store(false, Ordering::SeqCst);
    bench.device.lends.store(true, Ordering::SeqCst);
    for digest in ["None", "CRC32C"] {
        for segment in ["512", "8192", "262144"] {
            let mut i = bench.session(&[
                ("HeaderDigest", digest),
                ("DataDigest", digest),
                ("MaxRecvDataSegmentLength", segment),
            ]);
            for blocks in [1u16, 7, 64, 600, 2048] {
                let bytes = usize::from(blocks) * 512;
                let (end, data) = i.run(READ, u32::try_from(bytes).unwrap(), &read10(5, blocks), &[]);
                assert_eq!(end.status(), 0);
                assert!(data == bench.device.medium.lock()[5 * 512..5 * 512 + bytes], "{digest} {segment} {blocks}");
            }
        }
    }
}

#[test]
fn requests_are_noted_when_they_come() {
    static NOTED: AtomicUsize = AtomicUsize::new(0);
    let bench = Bench::new();
    bench.service.on_request(|| {
        NOTED.fetch_add(1, Ordering::SeqCst);
    });
    let mut i = bench.session(&[]);
    for n in 0..5 {
        let before = NOTED.load(Ordering::SeqCst);
        assert_eq!(i.run(READ, 512, &read10(n, 1), &[]).0.status(), 0);
        assert!(NOTED.load(Ordering::SeqCst) > before);
    }
}

#[test]
fn residuals_both_ways() {
    for lends in [false, true] {
        residuals(lends);
    }
}

fn residuals(lends: bool) {
    let bench = Bench::new();
    bench.device.at_once.store(!lends, Ordering::SeqCst);
    bench.device.lends.store(lends, Ordering::SeqCst);
    let mut i = bench.session(&[]);
    let flags = |pdu: &support::Pdu| (pdu.bhs.flags() & 6, pdu.word(44));
    let (end, data) = i.run(READ, 1024, &read10(0, 1), &[]);
    assert_eq!((flags(&end), data.len()), ((2, 512), 512));
    let (end, data) = i.run(READ, 512, &read10(0, 4), &[]);
    assert_eq!((flags(&end), data.len()), ((4, 1536), 512));
    let (end, data) = i.run(READ, 512, &read10(0, 1), &[]);
    assert_eq!((flags(&end), data.len()), ((0, 0), 512));
    let (end, data) = i.run(NONE, 0, &read10(0, 1), &[]);
    assert_eq!((flags(&end), data.len()), ((4, 512), 0));
    let (end, _) = i.run(READ, 512, &[0xc2], &[]);
    assert_eq!((end.status(), flags(&end), end.sense()), (2, (2, 512), (5, 0x24, 0)));
    // A write of more than the command takes, and of less.
    let (end, _) = i.run(WRITE, 1024, &write10(0, 1), &[9; 1024]);
    assert_eq!(flags(&end), (2, 512));
    assert_eq!(bench.device.medium.lock()[..1024], [[9; 512], [0; 512]].concat());
    let (end, _) = i.run(WRITE, 512, &write10(4, 2), &[8; 512]);
    assert_eq!(flags(&end), (4, 512));
    // Odd lengths are padded.
    let mut cdb = vec![0xc1, 0];
    cdb.extend(13u32.to_be_bytes());
    let (end, data) = i.run(READ, 13, &cdb, &[]);
    assert_eq!((data, flags(&end)), (pattern(13, 7), (0, 0)));
}

#[test]
fn immediate_and_unsolicited_data() {
    let bench = Bench::new();
    let keys = [("InitialR2T", "No"), ("ImmediateData", "Yes"), ("FirstBurstLength", "16384")];
    let mut i = bench.session(&keys);
    let data = pattern(16_384, 1);
    // Immediate and then unsolicited, in three PDUs.
    let tag = i.command(WRITE & !0x80, 16_384, &write10(0, 32), &data[..4096]);
    i.data_out(tag, NO, 0, 4096, false, &data[4096..8192]);
    i.data_out(tag, NO, 1, 8192, true, &data[8192..]);
    assert_eq!(i.finish(tag).0.status(), 0);
    assert_eq!(bench.device.medium.lock()[..16_384], data);
    // Unsolicited alone.
    let tag = i.command(WRITE & !0x80, 512, &write10(100, 1), &[]);
    i.data_out(tag, NO, 0, 0, true, &[5; 512]);
    assert_eq!(i.finish(tag).0.status(), 0);
    assert_eq!(bench.device.medium.lock()[51_200..51_712], [5; 512]);
}

/// Answers all R2T of a command of that length.
fn solicited(
    i: &mut support::Initiator,
    tag: u32,
    data: &[u8],
    piece: usize,
    outstanding_max: usize,
) -> (usize, support::Pdu) {
    let (mut r2ts, mut queue) = (0, Vec::new());
    loop {
        let pdu = i.receive().unwrap();
        assert_eq!(pdu.bhs.task_tag(), tag);
        if pdu.opcode() == 0x21 {
            return (r2ts, pdu);
        }
        assert_eq!((pdu.opcode(), pdu.word(36) as usize), (0x31, r2ts), "R2TSN");
        r2ts += 1;
        queue.push(pdu);
        // As many as may be outstanding come before any is answered; behind the last, no more come.
        let all = queue.last().is_some_and(|p| (p.word(40) + p.word(44)) as usize == data.len());
        while queue.len() == outstanding_max || (all && !queue.is_empty()) {
            let first = queue.remove(0);
            let (from, bytes) = (first.word(40) as usize, first.word(44) as usize);
            for (n, part) in data[from..from + bytes].chunks(piece).enumerate() {
                let offset = from + n * piece;
                let last = offset + part.len() == from + bytes;
                i.data_out(tag, first.word(20), n.try_into().unwrap(), offset.try_into().unwrap(), last, part);
            }
        }
    }
}

#[test]
fn solicited_data_with_several_r2t() {
    let bench = Bench::new();
    for (outstanding, piece, immediate) in
        [("1", 512, 0), ("4", 4096, 4096), ("16", 262_144, 65_536), ("1", 100_000, 512)]
    {
        for digest in ["None", "CRC32C"] {
            let mut i = bench.session(&[
                ("InitialR2T", "Yes"),
                ("MaxBurstLength", "131072"),
                ("MaxOutstandingR2T", outstanding),
                ("HeaderDigest", digest),
                ("DataDigest", digest),
            ]);
            let data = pattern(700 * 512, u8::try_from(piece % 251).unwrap());
            let tag = i.command(WRITE, 358_400, &write10(7, 700), &data[..immediate]);
            let most = outstanding.parse().unwrap();
            let (r2ts, end) = solicited(&mut i, tag, &data, piece.min(131_072), most);
            assert_eq!((end.status(), end.word(36) as usize), (0, r2ts), "ExpDataSN counts the R2T");
            assert_eq!(r2ts, (358_400 - immediate).div_ceil(131_072));
            assert_eq!(bench.device.medium.lock()[7 * 512..707 * 512], data);
        }
    }
}

#[test]
fn wrong_data_out_fails_its_command_alone() {
    let bench = Bench::new();
    let mut i = bench.session(&[("InitialR2T", "No"), ("FirstBurstLength", "4096")]);
    let ok = |i: &mut support::Initiator| assert_eq!(i.run(READ, 512, &read10(0, 1), &[]).0.status(), 0);
    // DataSN, offset, amount, and data that nobody asked for.
    for (sn, offset, bytes, code) in
        [(1, 0, 512, (11, 0x47, 5)), (0, 512, 512, (11, 0x0c, 0x0d)), (0, 0, 4608, (11, 0x0c, 0x0d))]
    {
        let tag = i.command(WRITE & !0x80, 8192, &write10(0, 16), &[]);
        i.data_out(tag, NO, sn, offset, true, &vec![1; bytes]);
        let (end, _) = i.finish(tag);
        assert_eq!((end.status(), end.sense()), (2, code));
        ok(&mut i);
    }
    let tag = i.command(WRITE, 8192, &write10(0, 16), &[]);
    let r2t = i.receive().unwrap();
    i.data_out(tag, r2t.word(20), 0, 0, true, &[1; 512]);
    assert_eq!(i.finish(tag).0.sense(), (11, 0x0c, 0x0d), "less than was asked for");
    // The rest of unsolicited data of a command that failed is thrown away.
    let tag = i.command(WRITE & !0x80, 8192, &write10(0, 16), &[]);
    i.data_out(tag, NO, 5, 0, false, &[1; 512]);
    i.ping(); // It is answered behind the last of its data (RFC 7143 11.4.2).
    i.data_out(tag, NO, 6, 512, true, &[1; 512]);
    assert_eq!(i.finish(tag).0.sense(), (11, 0x47, 5));
    i.data_out(tag, NO, 7, 512, true, &[1; 512]);
    ok(&mut i);
    // Also when several sequences are under way.
    let mut two = bench.session_of("iqn.2026-01.test:two", &[("MaxBurstLength", "4096"), ("MaxOutstandingR2T", "2")]);
    let tag = two.command(WRITE, 8192, &write10(0, 16), &[]);
    let asked = [two.receive().unwrap(), two.receive().unwrap()];
    two.data_out(tag, asked[0].word(20), 3, 0, false, &[1; 512]);
    two.ping();
    two.data_out(tag, asked[1].word(20), 0, 4096, true, &[1; 4096]);
    two.ping();
    two.data_out(tag, asked[0].word(20), 4, 512, true, &[1; 3584]);
    assert_eq!(two.finish(tag).0.sense(), (11, 0x47, 5));
    ok(&mut two);
    // More immediate data than the first burst.
    assert_eq!(i.run(WRITE, 8192, &write10(0, 16), &[1; 8192]).0.sense(), (11, 0x0c, 0x0c));
    // Data with a read.
    assert_eq!(i.run(READ, 512, &read10(0, 1), &[1; 512]).0.sense(), (11, 0x0c, 0x0c));
    assert!(bench.device.medium.lock().iter().all(|b| *b == 0));
    let mut strict = bench.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")]);
    assert_eq!(strict.run(WRITE, 512, &write10(0, 1), &[1; 512]).0.sense(), (11, 0x0c, 0x0c));
    let tag = strict.command(WRITE & !0x80, 512, &write10(0, 1), &[]);
    strict.data_out(tag, NO, 0, 0, true, &[1; 512]);
    assert_eq!(strict.finish(tag).0.sense(), (11, 0x0c, 0x0c));
}

#[test]
fn commands_out_of_order_wait_for_their_turn() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let first = i.cmd_sn;
    for n in [2u8, 1, 3, 0] {
        let (tag, head) = i.command_head(NONE, 0, &[0xc4, n]);
        i.send(head.word(24, first.wrapping_add(u32::from(n))).word(16, 50 + u32::from(n)), &[]);
        let _ = tag;
    }
    let tags: Vec<u32> = (0..4).map(|_| i.receive().unwrap().bhs.task_tag()).collect();
    assert_eq!(tags, [50, 51, 52, 53]);
    assert_eq!(*bench.device.notes.lock(), [0, 1, 2, 3]);
    i.cmd_sn = first + 4;
    // Outside the window, below and above: ignored.
    for number in [first, first.wrapping_sub(1), i.max_cmd_sn + 1, i.max_cmd_sn + 1000] {
        let (_, head) = i.command_head(NONE, 0, &[0xc4, 9]);
        i.send(head.word(24, number), &[]);
    }
    assert_eq!(i.ping().word(28), first + 4);
    assert_eq!(bench.device.notes.lock().len(), 4);
}

#[test]
fn the_window_is_as_wide_as_configured_and_closes() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let start = i.cmd_sn;
    assert_eq!(i.max_cmd_sn - start + 1, 128);
    for _ in 0..128 {
        i.command(NONE, 0, &[0xc0], &[]);
    }
    let pdu = i.ping();
    assert_eq!((pdu.word(28), pdu.word(32)), (start + 128, start + 127), "closed");
    i.command(NONE, 0, &[0xc4, 1], &[]);
    i.cmd_sn -= 1;
    i.ping();
    assert!(bench.device.notes.lock().is_empty(), "beyond the window nothing runs");
    // An immediate command needs no room.
    let (tag, head) = i.command_head(NONE, 0, &[0xc4, 2]);
    i.send(head.immediate().word(24, i.cmd_sn), &[]);
    support::until(|| bench.device.waiting.load(Ordering::SeqCst) >= 1);
    bench.device.release_all();
    let mut tags: Vec<u32> = (0..129).map(|_| i.receive().unwrap().bhs.task_tag()).collect();
    tags.sort_unstable();
    assert!(tags.contains(&tag));
    assert_eq!(i.max_cmd_sn, start + 255);
}

#[test]
fn a_slow_command_holds_up_nobody() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    for round in 1..4u8 {
        // The first is alone, and begins on the connection's own thread.
        let slow = i.command(NONE, 0, &[0xc0], &[]);
        bench.device.until_waiting(1);
        i.ping();
        assert_eq!(i.run(NONE, 0, &[0xc4, round], &[]).0.status(), 0);
        let other = i.command(NONE, 0, &[0xc0], &[]);
        bench.device.until_waiting(2);
        i.ping();
        bench.device.release(2);
        let mut done = [i.receive().unwrap().bhs.task_tag(), i.receive().unwrap().bhs.task_tag()];
        done.sort_unstable();
        assert_eq!(done, [slow, other]);
    }
    assert_eq!(*bench.device.notes.lock(), [1, 2, 3]);
}

#[test]
fn ordered_commands_wait_for_those_before() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let slow = i.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let mut attribute = |value: u8, note: u8| {
        let (tag, mut head) = i.command_head(NONE, 0, &[0xc4, note]);
        head.0[1] = NONE | value;
        i.send_numbered(head, &[]);
        tag
    };
    let ordered = attribute(2, 1);
    let simple = attribute(1, 2);
    let head_of_queue = attribute(3, 3);
    assert_eq!(i.finish(head_of_queue).0.status(), 0);
    i.ping();
    assert_eq!(*bench.device.notes.lock(), [3]);
    bench.device.release(1);
    for tag in [slow, ordered, simple] {
        assert_eq!(i.finish(tag).0.status(), 0);
    }
    assert_eq!(*bench.device.notes.lock(), [3, 1, 2]);
}

#[test]
fn a_panic_is_one_commands_failure() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let (end, _) = i.run(NONE, 0, &[0xc3], &[]);
    assert_eq!((end.status(), end.sense()), (2, (4, 0x44, 0)));
    assert_eq!(i.run(NONE, 0, &[0], &[]).0.status(), 0);
}

#[test]
fn a_panic_outside_a_command_ends_its_session_and_no_other() {
    let bench = Bench::new();
    let mut other = Initiator { name: "iqn.2026-01.test:other".into(), ..bench.connect() };
    assert_eq!(other.login(&[]), 0);
    let mut i = bench.session(&[]);
    i.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    i.command(WRITE, 512, &[0xc5], &[1; 512]);
    bench.device.release(1);
    assert!(i.closed());
    // Its initiator can come back.
    assert_eq!(bench.session(&[]).run(NONE, 0, &[0], &[]).0.status(), 0);
    assert_eq!(other.run(NONE, 0, &[0], &[]).0.status(), 0);
}

#[test]
fn extended_cdbs_and_broken_additional_headers() {
    let bench = Bench::new();
    let mut i = bench.session(&[("HeaderDigest", "CRC32C")]);
    for (ahs, good) in [([0, 5, 1, 0, 1, 2, 3, 4], true), ([9, 9, 9, 9, 9, 9, 9, 9], false)] {
        let (tag, head) = i.command_head(NONE, 0, &[0xc4, 4]);
        let bytes = i.bytes_of(head.word(24, i.cmd_sn), &ahs, &[]);
        i.cmd_sn += 1;
        std::io::Write::write_all(&mut i.stream, &bytes).unwrap();
        let pdu = i.receive().unwrap();
        if good {
            assert_eq!((pdu.opcode(), pdu.bhs.task_tag()), (0x21, tag));
        } else {
            assert_eq!((pdu.opcode(), pdu.bhs.0[2]), (0x3f, 9));
            assert_eq!(pdu.data[..48], bytes[..48], "a reject carries the header");
        }
    }
}

#[test]
fn counts_are_kept() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    i.run(READ, 1024, &read10(0, 2), &[]);
    i.run(WRITE, 512, &write10(0, 1), &[1; 512]);
    i.run(NONE, 0, &[0xc2], &[]);
    let info = bench.service.sessions(support::TARGET).unwrap().remove(0);
    let metrics = &info.luns[0].metrics;
    assert_eq!((info.luns[0].lun, metrics.reads_done.commands, metrics.reads_done.bytes), (1, 1, 1024));
    assert_eq!((metrics.writes_done.commands, metrics.writes_done.bytes, metrics.errors), (1, 512, 1));
    assert_eq!(metrics.latency.iter().sum::<u64>(), 3);
    drop(i);
    bench.until_sessions(0);
    assert_eq!(bench.service.target(support::TARGET).unwrap().luns[0].metrics, *metrics, "kept after the session");
}
