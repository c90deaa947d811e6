//! Reservations as initiators meet them.

use super::*;
use crate::scsi::reserve::{Holding, Kind, REGISTRATIONS_MAX};

const CONFLICT: u8 = 0x18;

fn out(world: &World, nexus: &Arc<Nexus>, action: u8, kind: u8, key: u64, service: u64) -> Response {
    out_flags(world, nexus, action, kind, key, service, 0)
}

fn out_flags(world: &World, nexus: &Arc<Nexus>, action: u8, kind: u8, key: u64, service: u64, flags: u8) -> Response {
    let mut list = key.to_be_bytes().to_vec();
    list.extend(service.to_be_bytes());
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    world.run(nexus, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list)
}

fn write(world: &World, nexus: &Arc<Nexus>) -> u8 {
    world.run(nexus, &cdb10(0x2a, 0, 0, 1), &[1; BLOCK]).status
}

fn read(world: &World, nexus: &Arc<Nexus>) -> u8 {
    world.run(nexus, &cdb10(0x28, 0, 0, 1), &[]).status
}

#[test]
fn each_kind_lets_through_what_it_says() {
    // kind, then of a registrant and of a stranger: may read, may write
    for (kind, registrant, stranger) in [
        (1, [true, false], [true, false]),
        (3, [false, false], [false, false]),
        (5, [true, true], [true, false]),
        (6, [true, true], [false, false]),
        (7, [true, true], [true, false]),
        (8, [true, true], [false, false]),
    ] {
        let world = World::new();
        let (a, b, c) = (world.nexus(1), world.nexus(2), world.nexus(3));
        assert_eq!(out(&world, &a, 0, 0, 0, 0xa).status, 0);
        assert_eq!(out(&world, &b, 6, 0, 99, 0xb).status, 0);
        assert_eq!(out(&world, &a, 1, kind, 0xa, 0).status, 0);
        let status = |yes: bool| if yes { 0 } else { CONFLICT };
        assert_eq!((read(&world, &a), write(&world, &a)), (0, 0));
        assert_eq!((read(&world, &b), write(&world, &b)), (status(registrant[0]), status(registrant[1])), "{kind}");
        assert_eq!((read(&world, &c), write(&world, &c)), (status(stranger[0]), status(stranger[1])), "{kind}");
        assert_eq!(world.run(&c, &[0; 6], &[]).status, 0, "asking whether it is ready is free");
        assert_eq!(world.run(&c, &[0x16, 0, 0, 0, 0, 0], &[]).status, CONFLICT);
        assert_eq!(out(&world, &a, 2, kind, 0xa, 0).status, 0);
        assert_eq!(write(&world, &c), 0);
    }
}

#[test]
fn keys_are_what_counts() {
    let world = World::new();
    let (a, b) = (world.nexus(1), world.nexus(2));
    assert_eq!(out(&world, &a, 0, 0, 1, 0xa).status, CONFLICT, "not registered");
    assert_eq!(out(&world, &a, 0, 0, 0, 0xa).status, 0);
    assert_eq!(out(&world, &a, 0, 0, 0, 0xb).status, CONFLICT);
    assert_eq!(out(&world, &a, 1, 5, 0xb, 0).status, CONFLICT);
    assert_eq!(out(&world, &b, 1, 5, 0, 0).status, CONFLICT, "a stranger reserves nothing");
    assert_eq!(out(&world, &a, 1, 5, 0xa, 0).status, 0);
    assert_eq!(out(&world, &a, 1, 5, 0xa, 0).status, 0, "again the same");
    assert_eq!(out(&world, &a, 1, 6, 0xa, 0).status, CONFLICT, "but not another");
    assert_eq!(sense(&out(&world, &a, 2, 6, 0xa, 0)), Some((5, 0x26, 4)));
    assert_eq!(sense(&out(&world, &a, 1, 2, 0xa, 0)), Some((5, 0x24, 0)), "no such kind");
    let keys = world.good(&b, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0], &[]);
    assert_eq!(keys, [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xa]);
    let held = world.good(&b, &[0x5e, 1, 0, 0, 0, 0, 0, 0, 255, 0], &[]);
    assert_eq!((held.len(), held[15], held[21]), (24, 0xa, 5));
    let full = world.good(&b, &[0x5e, 3, 0, 0, 0, 0, 0, 255, 255, 0], &[]);
    assert_eq!((full[20], full[21], full[27]), (1, 5, 1));
    assert!(full[36..].starts_with(b"iqn.2026-01.test:host1,i,0x800000000001\0"));
    assert_eq!(out(&world, &a, 0, 0, 0xa, 0).status, 0);
    assert_eq!(write(&world, &b), 0, "with its registration goes what it holds");
}

#[test]
fn preempting_takes_over_and_tells() {
    let world = World::new();
    let (a, b, c) = (world.nexus(1), world.nexus(2), world.nexus(3));
    for (nexus, key) in [(&a, 0xa), (&b, 0xb), (&c, 0xc)] {
        assert_eq!(out(&world, nexus, 0, 0, 0, key).status, 0);
    }
    assert_eq!(out(&world, &a, 1, 5, 0xa, 0).status, 0);
    assert_eq!(sense(&out(&world, &b, 4, 5, 0xb, 0)), Some((5, 0x26, 0)));
    assert_eq!(out(&world, &b, 4, 5, 0xb, 0x77).status, CONFLICT, "nobody has this key");
    assert_eq!(out(&world, &b, 5, 6, 0xb, 0xa).status, 0);
    assert_eq!(world.refused(&a, &[0; 6], &[]), (6, 0x2a, 5));
    assert_eq!(world.refused(&c, &[0; 6], &[]), (6, 0x2a, 4), "the kind has changed");
    assert_eq!((write(&world, &a), write(&world, &b), write(&world, &c)), (CONFLICT, 0, 0));
    assert_eq!(out(&world, &c, 3, 0, 0xc, 0).status, 0);
    assert_eq!(world.refused(&b, &[0; 6], &[]), (6, 0x2a, 3));
    assert_eq!(write(&world, &a), 0);
}

#[test]
fn all_registrants_hold_until_the_last_is_gone() {
    let world = World::new();
    let (a, b, c) = (world.nexus(1), world.nexus(2), world.nexus(3));
    assert_eq!(out(&world, &a, 0, 0, 0, 0xa).status, 0);
    assert_eq!(out(&world, &b, 0, 0, 0, 0xb).status, 0);
    assert_eq!(out(&world, &a, 1, 7, 0xa, 0).status, 0);
    assert_eq!(out(&world, &b, 1, 7, 0xb, 0).status, 0, "every registrant holds it");
    assert_eq!(out(&world, &a, 0, 0, 0xa, 0).status, 0);
    assert_eq!(write(&world, &c), CONFLICT);
    assert_eq!(out(&world, &b, 0, 0, 0xb, 0).status, 0);
    assert_eq!(write(&world, &c), 0);
    // a preemption of key 0 takes all away
    for (nexus, key) in [(&a, 0xa), (&b, 0xb)] {
        assert_eq!(out(&world, nexus, 0, 0, 0, key).status, 0);
    }
    assert_eq!(out(&world, &a, 1, 8, 0xa, 0).status, 0);
    assert_eq!(out(&world, &b, 4, 3, 0xb, 0).status, 0);
    let state = world.units.unit(1).expect("unit").reservations.state();
    assert_eq!(state.registrations.len(), 1);
    assert!(matches!(state.holding, Some(Holding { kind: Kind::ExclusiveAccess, holder: Some(_) })));
}

#[test]
fn what_shall_survive_survives() {
    let world = World::new();
    let (a, b) = (world.nexus(1), world.nexus(2));
    assert_eq!(out_flags(&world, &a, 0, 0, 0, 0xa, 5).status, 0, "for all ports, over power losses");
    assert_eq!(out(&world, &a, 1, 3, 0xa, 0).status, 0);
    let before = world.units.unit(1).expect("unit").reservations.state();
    assert_eq!(before.registrations.len(), 2);
    let again = World::with(world.kept.clone(), config());
    assert_eq!(again.units.unit(1).expect("unit").reservations.state(), before);
    let a2 = again.nexus(1);
    let b2 = again.nexus(2);
    assert_eq!((write(&again, &a2), write(&again, &b2)), (0, CONFLICT), "the same initiator in a new session");
    assert_eq!(out(&again, &a2, 6, 0, 0, 0xa).status, 0, "without APTPL from now on");
    let third = World::with(world.kept.clone(), config());
    let b3 = third.nexus(2);
    assert_eq!(write(&third, &b3), 0);
    drop((a, b));
}

#[test]
fn a_reservation_is_moved() {
    let world = World::new();
    let (a, b) = (world.nexus(1), world.nexus(2));
    assert_eq!(out(&world, &a, 0, 0, 0, 0xa).status, 0);
    assert_eq!(out(&world, &a, 1, 1, 0xa, 0).status, 0);
    let id = crate::scsi::reserve::transport_id(&b);
    let mut list = 0xau64.to_be_bytes().to_vec();
    list.extend(0xbu64.to_be_bytes());
    list.extend([0, 2, 0, 1]);
    list.extend(u32::try_from(id.len()).expect("short").to_be_bytes());
    list.extend(&id);
    let length = u8::try_from(list.len()).expect("short");
    world.good(&a, &[0x5f, 7, 1, 0, 0, 0, 0, 0, length, 0], &list);
    assert_eq!((write(&world, &a), write(&world, &b)), (CONFLICT, 0));
    let state = world.units.unit(1).expect("unit").reservations.state();
    assert_eq!(state.registrations.len(), 1, "the mover has unregistered");
    // others are registered by name
    let c = world.nexus(3);
    let mut list = vec![0; 8];
    list.extend(0xcu64.to_be_bytes());
    list.extend([0, 0, 0, 0, 8, 0, 0, 0]);
    let id = crate::scsi::reserve::transport_id(&a);
    list.extend(u32::try_from(id.len()).expect("short").to_be_bytes());
    list.extend(&id);
    world.good(&c, &[0x5f, 0, 0, 0, 0, 0, 0, 0, u8::try_from(list.len()).expect("short"), 0], &list);
    assert_eq!(world.units.unit(1).expect("unit").reservations.state().registrations.len(), 3);
    const { assert!(REGISTRATIONS_MAX >= 64) };
}

#[test]
fn reservations_of_spc2_are_of_the_session() {
    let world = World::new();
    let (a, b) = (world.nexus(1), world.nexus(2));
    world.good(&a, &[0x16, 0, 0, 0, 0, 0], &[]);
    assert_eq!((read(&world, &b), write(&world, &a)), (CONFLICT, 0));
    assert_eq!(world.run(&b, &[0; 6], &[]).status, CONFLICT);
    assert_eq!(world.run(&b, &[0x16, 0, 0, 0, 0, 0], &[]).status, CONFLICT);
    world.good(&b, &[0x17, 0, 0, 0, 0, 0], &[]);
    assert_eq!(read(&world, &b), CONFLICT, "not its own to release");
    assert_eq!(world.run(&b, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0], &[]).status, CONFLICT);
    world.units.nexus_lost(&a);
    assert_eq!(read(&world, &b), 0);
}
