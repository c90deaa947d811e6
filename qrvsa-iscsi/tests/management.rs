//! Task management on real connections.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use qrvsa_iscsi::backing::MemoryBacking;
use qrvsa_iscsi::config::{AclRule, Limits, TargetConfig};
use qrvsa_iscsi::scsi::{Management, TargetUnits, UnitConfig};
use qrvsa_iscsi::service::Service;
use support::{Bench, Initiator, NONE, TARGET, WRITE, write10};

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
