//! A command that takes hours ends with its session, however that ends; the work goes on.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qrvsa_iscsi::backing::NullBacking;
use qrvsa_iscsi::config::{AclRule, Limits, TargetConfig};
use qrvsa_iscsi::scsi::{TargetUnits, UnitConfig};
use qrvsa_iscsi::service::Service;
use support::{Head, Initiator, NONE, TARGET, WRITE, until};

struct Host {
    service: Service,
    units: Arc<TargetUnits>,
    address: SocketAddr,
}

impl Host {
    /// A target whose unit takes more than an hour to overwrite.
    fn new() -> Host {
        let service = Service::new(Limits::default());
        let address = service.add_portal("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let units = Arc::new(TargetUnits::new(TARGET, None));
        units.add_unit(1, UnitConfig::default(), Arc::new(NullBacking::new(1 << 40))).unwrap();
        let mut config = TargetConfig::new(TARGET.parse().unwrap(), 1);
        config.acl.push(AclRule::All);
        config.nop_interval = Duration::ZERO;
        service.create_target(config, units.clone()).unwrap();
        Host { service, units, address }
    }

    fn join(&self, last: u8) -> Initiator {
        let mut initiator = Initiator::connect(self.address);
        initiator.isid[5] = last;
        assert_eq!(initiator.login(&[]), 0);
        initiator
    }

    /// A session whose SANITIZE is under way, without IMMED; its tag.
    fn sanitizing(&self) -> (Initiator, u32) {
        let (mut i, mut other) = (self.join(1), self.join(2));
        for i in [&mut i, &mut other] {
            while i.run(NONE, 0, &[0; 6], &[]).0.status() != 0 {}
        }
        let tag = i.command(WRITE, 5, &[0x48, 1, 0, 0, 0, 0, 0, 0, 5, 0], &[1, 0, 0, 1, 9]);
        until(|| sanitized(&mut other));
        (i, tag)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.service.shutdown(Duration::ZERO);
    }
}

fn sanitized(i: &mut Initiator) -> bool {
    let answer = i.run(NONE, 0, &[0; 6], &[]).0;
    answer.status() == 2 && answer.sense() == (2, 0x04, 0x1b)
}

#[test]
fn a_logout_is_answered() {
    let host = Host::new();
    let (mut i, _) = host.sanitizing();
    let tag = i.tag();
    i.send(Head::new(0x46, 0x80).word(16, tag).word(24, i.cmd_sn), &[]);
    let answer = i.receive().unwrap();
    assert_eq!((answer.opcode(), answer.bhs.task_tag(), answer.bhs.0[2]), (0x26, tag, 0));
    assert!(i.closed());
    let mut again = host.join(1);
    until(|| sanitized(&mut again));
}

#[test]
fn a_lost_connection_leaves_room_for_the_next() {
    let host = Host::new();
    let (i, _) = host.sanitizing();
    drop(i);
    until(|| host.service.sessions(TARGET).unwrap().is_empty());
    let mut again = host.join(1);
    until(|| sanitized(&mut again));
    // in the place of a session that waits for its command, too
    drop(again);
    let host = Host::new();
    let (_i, _) = host.sanitizing();
    host.join(1);
}

#[test]
fn whoever_else_ends_tasks_ends_it() {
    let host = Host::new();
    let (mut i, tag) = host.sanitizing();
    let request = i.manage(1, tag, i.cmd_sn - 1);
    let answer = i.receive().unwrap();
    assert_eq!((answer.opcode(), answer.bhs.task_tag(), answer.bhs.0[2]), (0x22, request, 0));

    let host = Host::new();
    let (_i, _) = host.sanitizing();
    let sid = host.service.sessions(TARGET).unwrap().iter().find(|s| s.isid[5] == 1).unwrap().sid;
    host.service.drop_session(TARGET, sid).unwrap();
    until(|| host.service.sessions(TARGET).unwrap().is_empty());

    let host = Host::new();
    let (mut i, _) = host.sanitizing();
    host.units.remove_unit(1).unwrap();
    i.ping();
    until(|| host.service.sessions(TARGET).unwrap().iter().all(|s| s.connections[0].commands_outstanding == 0));

    let host = Host::new();
    let (_i, _) = host.sanitizing();
    host.service.shutdown(Duration::ZERO);
    assert_eq!(host.service.connections(), 0);
}
