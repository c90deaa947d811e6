//! Task management on real connections.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::sync::Arc;

use qrvsa_iscsi::backing::MemoryBacking;
use qrvsa_iscsi::config::{AclRule, Limits, TargetConfig};
use qrvsa_iscsi::scsi::{Management, TargetUnits, UnitConfig};
use qrvsa_iscsi::service::Service;
use support::{Bench, Head, Initiator, NONE, READ, TARGET, WRITE, read10, until, write10};

fn answer(i: &mut Initiator, tag: u32) -> u8 {
    let pdu = i.receive().unwrap();
    assert_eq!((pdu.opcode(), pdu.bhs.task_tag()), (0x22, tag), "{pdu:?}");
    pdu.bhs.0[2]
}

#[test]
fn an_aborted_write_is_never_carried_out() {
    let bench = Bench::new();
    let mut i = bench.session(&[("InitialR2T", "Yes"), ("ImmediateData", "No")]);
    let tag = i.command(WRITE, 512, &write10(0, 1), &[]);
    let r2t = i.receive().unwrap();
    let request = i.manage(1, tag, i.cmd_sn - 1);
    assert_eq!(answer(&mut i, request), 0);
    // Its data comes late, and is thrown away.
    i.data_out(tag, r2t.word(20), 0, 0, true, &[1; 512]);
    i.ping();
    assert!(bench.device.medium.lock().iter().all(|b| *b == 0));
    assert_eq!(bench.device.managed.lock().as_slice(), [Management::AbortTask(tag)]);
    let info = &bench.service.sessions(TARGET).unwrap()[0];
    assert_eq!(info.connections[0].commands_outstanding, 0);
}

#[test]
fn the_answer_waits_for_what_the_device_server_has_in_hand() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    for function in [1, 2, 4, 5, 6] {
        let slow = i.command(NONE, 0, &[0xc0], &[]);
        bench.device.until_waiting(1);
        let request = i.manage(function, slow, i.cmd_sn - 1);
        i.ping(); // comes before the answer to the request
        bench.device.release(1);
        assert_eq!(answer(&mut i, request), 0, "function {function}");
        i.ping(); // and no answer to the command
    }
}

#[test]
fn tasks_that_are_not_there() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    i.run(NONE, 0, &[0], &[]);
    let request = i.manage(1, i.next_tag, i.cmd_sn - 1);
    assert_eq!(answer(&mut i, request), 1, "done already");
    // One that has not come: it is taken as if it had.
    let missing = i.cmd_sn;
    i.cmd_sn += 1;
    let request = i.manage(1, 0x7777, missing);
    assert_eq!(answer(&mut i, request), 0);
    assert_eq!(i.run(NONE, 0, &[0xc4, 1], &[]).0.status(), 0, "its number is used up");
    for (function, code) in [(8, 4), (3, 0), (9, 5), (14, 5), (0, 5)] {
        let request = i.manage(function, 0x7777, 0);
        assert_eq!(answer(&mut i, request), code, "function {function}");
    }
}

#[test]
fn a_reset_ends_the_tasks_of_others_too() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let mut other = Initiator { name: "iqn.2026-01.test:other".into(), ..bench.connect() };
    assert_eq!(other.login(&[("InitialR2T", "Yes")]), 0);
    let waiting = other.command(WRITE, 512, &write10(0, 1), &[]);
    let r2t = other.receive().unwrap();
    other.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let request = i.manage(5, 0, 0);
    i.ping();
    bench.device.release(1);
    assert_eq!(answer(&mut i, request), 0);
    other.data_out(waiting, r2t.word(20), 0, 0, true, &[1; 512]);
    other.ping();
    assert!(bench.device.medium.lock().iter().all(|b| *b == 0));
    assert_eq!(other.run(NONE, 0, &[0], &[]).0.status(), 0);
}

#[test]
fn a_cold_reset_drops_all_connections() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let mut other = Initiator { name: "iqn.2026-01.test:other".into(), ..bench.connect() };
    assert_eq!(other.login(&[]), 0);
    let request = i.manage(7, 0, 0);
    assert_eq!(answer(&mut i, request), 0);
    assert!(i.closed());
    assert!(other.closed());
    bench.until_sessions(0);
}

#[test]
fn a_cold_reset_is_answered_when_it_had_to_wait() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    i.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let request = i.manage(7, 0, 0);
    i.ping();
    bench.device.release(1);
    assert_eq!(answer(&mut i, request), 0);
    assert!(i.closed());
    bench.until_sessions(0);
}

#[test]
fn a_unit_has_one_number_however_it_is_addressed() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    for function in [1, 2, 5] {
        let (tag, head) = i.command_head(NONE, 0, &[0xc0]);
        i.send_numbered(head.byte(8, 0x40), &[]);
        bench.device.until_waiting(1);
        let request = i.manage(function, tag, i.cmd_sn - 1);
        i.ping();
        bench.device.release(1);
        assert_eq!(answer(&mut i, request), 0, "function {function}");
        i.ping(); // and no answer to the command
    }
}

#[test]
fn who_had_no_command_hears_of_none_that_was_cleared() {
    let service = Service::new(Limits::default());
    let address = service.add_portal("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let units = Arc::new(TargetUnits::new(TARGET, None));
    units.add_unit(1, UnitConfig::default(), Arc::new(MemoryBacking::new(1 << 20))).unwrap();
    let mut config = TargetConfig::new(TARGET.parse().unwrap(), 1);
    config.acl.push(AclRule::All);
    service.create_target(config, units).unwrap();
    let [mut clears, mut writes, mut idle] = [1, 2, 3].map(|last| {
        let mut i = Initiator::connect(address);
        i.isid[5] = last;
        assert_eq!(i.login(&[("InitialR2T", "Yes"), ("ImmediateData", "No")]), 0);
        while i.run(NONE, 0, &[0; 6], &[]).0.status() != 0 {}
        i
    });
    writes.command(WRITE, 512, &write10(0, 1), &[]);
    assert_eq!(writes.receive().unwrap().opcode(), 0x31);
    let request = clears.manage(4, 0, 0);
    assert_eq!(answer(&mut clears, request), 0);
    assert_eq!(idle.run(NONE, 0, &[0; 6], &[]).0.status(), 0);
    let told = writes.run(NONE, 0, &[0; 6], &[]).0;
    assert_eq!((told.status(), told.sense()), (2, (6, 0x2f, 0)));
    assert_eq!(clears.run(NONE, 0, &[0; 6], &[]).0.status(), 0);
    service.shutdown(std::time::Duration::ZERO);
}

fn other(bench: &Bench, keys: &[(&str, &str)]) -> Initiator {
    let mut other = Initiator { name: "iqn.2026-01.test:other".into(), ..bench.connect() };
    assert_eq!(other.login(keys), 0);
    other
}

/// Commands of that name that have no answer.
fn outstanding(bench: &Bench, of: &Initiator) -> u64 {
    let sessions = bench.service.sessions(TARGET).unwrap();
    let session = sessions.iter().find(|s| s.initiator_name == of.name).unwrap();
    session.connections[0].commands_outstanding
}

/// Takes all that comes before the answer to a ping.
fn drain(i: &mut Initiator) -> Vec<support::Pdu> {
    let tag = i.tag();
    i.send(Head::new(0x40, 0x80).word(16, tag).word(20, u32::MAX).word(24, i.cmd_sn), &[]);
    let mut all = Vec::new();
    loop {
        let pdu = i.receive().unwrap();
        if (pdu.opcode(), pdu.bhs.task_tag()) == (0x20, tag) {
            return all;
        }
        all.push(pdu);
    }
}

#[test]
fn what_waits_behind_a_reader_does_not_survive_a_reset() {
    let bench = Bench::with(|l| l.data_in_bytes_max = 1 << 20, |_| ());
    let mut i = bench.session(&[]);
    for function in [5, 6, 4] {
        let mut slow = other(&bench, &[]);
        let mut commands = Vec::new();
        for _ in 0..10 {
            let (_, head) = slow.command_head(READ, 4 << 20, &read10(0, 8192));
            commands.extend(slow.bytes_of(head.word(24, slow.cmd_sn), &[], &[]));
            slow.cmd_sn += 1;
        }
        let (write, head) = slow.command_head(WRITE, 512, &write10(9, 1));
        commands.extend(slow.bytes_of(head.word(24, slow.cmd_sn), &[], &[1; 512]));
        slow.cmd_sn += 1;
        slow.stream.write_all(&commands).unwrap();
        until(|| outstanding(&bench, &slow) >= 2);
        let request = i.manage(function, 0, 0);
        assert_eq!(answer(&mut i, request), 0);
        assert!(drain(&mut slow).iter().all(|pdu| pdu.bhs.task_tag() != write), "function {function}");
        assert!(bench.device.medium.lock().iter().all(|b| *b == 0), "function {function}");
        assert_eq!(slow.run(NONE, 0, &[0], &[]).0.status(), 0);
        assert_eq!(outstanding(&bench, &slow), 0);
        drop(slow);
        bench.until_sessions(1);
    }
}

#[test]
fn what_came_with_a_command_does_not_survive_a_reset_during_it() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let mut victim = other(&bench, &[]);
    for told in [0, 1, 2] {
        let mut commands = Vec::new();
        let mut tags = Vec::new();
        for n in 0..4 {
            let cdb = if n == 0 { vec![0xc6, told] } else { write10(n, 1) };
            let data: &[u8] = if n == 0 { &[] } else { &[1; 512] };
            let (tag, head) = victim.command_head(if n == 0 { NONE } else { WRITE }, data.len() as u32, &cdb);
            // The last one is of another unit.
            let head = if n == 3 { head.lun(2).cdb(&write10(100, 1)) } else { head };
            commands.extend(victim.bytes_of(head.word(24, victim.cmd_sn), &[], data));
            victim.cmd_sn += 1;
            tags.push(tag);
        }
        victim.stream.write_all(&commands).unwrap();
        if told > 0 {
            for tag in &tags[1..3] {
                let end = victim.finish(*tag).0;
                assert_eq!((end.status(), end.sense()), (2, (6, 0x2f, 0)));
            }
        }
        assert_eq!(victim.finish(tags[3]).0.status(), 0);
        assert!(drain(&mut victim).is_empty());
        assert!(bench.device.medium.lock()[..100 * 512].iter().all(|b| *b == 0));
        assert_eq!(outstanding(&bench, &victim), 0);
    }
    i.ping();
}

#[test]
fn commands_ahead_of_a_gap_are_ended_with_the_others() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    for function in [2, 4, 5, 6] {
        let gap = i.cmd_sn;
        i.cmd_sn += 1;
        i.command(NONE, 0, &[0xc4, 1], &[]);
        let (other_unit, head) = i.command_head(NONE, 0, &[0xc4, 2]);
        i.send_numbered(head.lun(2), &[]);
        let request = i.manage(function, 0, 0);
        assert_eq!(answer(&mut i, request), 0);
        let last = i.command(NONE, 0, &[0xc4, 3], &[]);
        let (first, head) = i.command_head(NONE, 0, &[0xc4, 0]);
        i.send(head.word(24, gap), &[]);
        let mut left = if function == 6 { vec![first, last] } else { vec![first, other_unit, last] };
        while !left.is_empty() {
            let pdu = i.receive().unwrap();
            assert!(left.contains(&pdu.bhs.task_tag()), "function {function}: {pdu:?}");
            left.retain(|tag| *tag != pdu.bhs.task_tag());
        }
        let mut notes = std::mem::take(&mut *bench.device.notes.lock());
        notes.sort_unstable();
        assert_eq!(notes, if function == 6 { vec![0, 3] } else { vec![0, 2, 3] }, "function {function}");
    }
}

#[test]
fn an_answer_waits_for_its_own_tasks_alone() {
    let bench = Bench::new();
    let mut i = bench.session(&[]);
    let mut victim = other(&bench, &[]);
    victim.command(NONE, 0, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let waits = i.manage(5, 0, 0);
    i.ping();
    // Another unit, and one task.
    let tag = i.tag();
    i.send(Head::new(0x42, 0x85).lun(2).word(16, tag).word(24, i.cmd_sn), &[]);
    assert_eq!(answer(&mut i, tag), 0);
    let (slow, head) = i.command_head(NONE, 0, &[0xc0]);
    i.send_numbered(head, &[]);
    bench.device.until_waiting(2);
    let none = i.manage(1, slow + 1000, i.cmd_sn.wrapping_sub(1));
    assert_eq!(answer(&mut i, none), 1);
    bench.device.release(1);
    bench.device.release(1);
    let mut left = vec![waits, slow];
    while !left.is_empty() {
        let pdu = i.receive().unwrap();
        left.retain(|tag| *tag != pdu.bhs.task_tag());
    }
}

#[test]
fn a_task_whose_data_was_wrong_is_gone() {
    let bench = Bench::new();
    let mut i = bench.session(&[("InitialR2T", "No"), ("FirstBurstLength", "4096")]);
    let tag = i.command(WRITE & !0x80, 8192, &write10(0, 16), &[]);
    i.data_out(tag, u32::MAX, 7, 0, true, &[1; 512]);
    assert_eq!(i.finish(tag).0.sense(), (11, 0x47, 5));
    let request = i.manage(1, tag, i.cmd_sn - 1);
    assert_eq!(answer(&mut i, request), 1, "there is no such task");
    // As long as its data comes it is there, and can be aborted.
    let tag = i.command(WRITE & !0x80, 8192, &write10(0, 16), &[]);
    i.data_out(tag, u32::MAX, 7, 0, false, &[1; 512]);
    let request = i.manage(1, tag, i.cmd_sn - 1);
    assert_eq!(answer(&mut i, request), 0);
    i.data_out(tag, u32::MAX, 8, 512, true, &[1; 512]);
    i.ping();
    assert_eq!(outstanding(&bench, &i), 0);
}

#[test]
fn a_unit_that_hangs_holds_up_no_other_of_its_session() {
    let bench = Bench::with(|l| l.data_in_bytes_max = 1 << 20, |_| ());
    let mut i = bench.session(&[]);
    let hangs = i.command(READ, 1 << 20, &[0xc0], &[]);
    bench.device.until_waiting(1);
    let waits = i.command(READ, 1 << 20, &[0xc0], &[]);
    for _ in 0..3 {
        let (read, head) = i.command_head(READ, 1 << 20, &[0xc1, 0, 0, 0x10, 0, 0]);
        i.send_numbered(head.lun(2), &[]);
        let (end, data) = i.finish(read);
        assert_eq!((end.status(), data.len()), (0, 1 << 20));
        let (write, head) = i.command_head(WRITE, 512, &write10(9, 1));
        i.send_numbered(head.lun(2), &[1; 512]);
        assert_eq!(i.finish(write).0.status(), 0);
    }
    // What waits for room is known: it can be aborted, and does not run later.
    let request = i.manage(1, waits, i.cmd_sn - 1);
    assert_eq!(answer(&mut i, request), 0);
    // What hangs takes no room once it is ended.
    let request = i.manage(1, hangs, i.cmd_sn - 1);
    let read = i.command(READ, 1 << 20, &[0xc1, 0, 0, 0x10, 0, 0], &[]);
    assert_eq!(i.finish(read).0.status(), 0);
    bench.device.release(1);
    assert_eq!(answer(&mut i, request), 0);
    assert!(drain(&mut i).is_empty());
    assert_eq!((bench.device.waiting.load(std::sync::atomic::Ordering::SeqCst), outstanding(&bench, &i)), (0, 0));
}
