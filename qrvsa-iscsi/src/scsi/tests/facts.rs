//! INQUIRY, capacity, mode pages, supported commands, unit attentions.

use super::*;
use crate::scsi::Management;

#[test]
fn inquiry_names_the_unit() {
    let world = World::new();
    let nexus = world.fresh(1);
    let data = world.good(&nexus, &[0x12, 0, 0, 0, 96, 0], &[]);
    assert_eq!((data.len(), data[0], data[1], data[4]), (96, 0, 0x80, 91));
    assert_eq!(&data[8..36], b"QRVSA   VIRTUAL-DISK    0001");
    assert_eq!(world.good(&nexus, &[0x12, 0, 0, 0, 5, 0], &[]).len(), 5);
    let pages = world.good(&nexus, &[0x12, 1, 0, 0, 255, 0], &[]);
    for code in &pages[4..] {
        let page = world.good(&nexus, &[0x12, 1, *code, 4, 0, 0], &[]);
        assert_eq!(page[1], *code);
        assert_eq!(usize::from(u16::from_be_bytes([page[2], page[3]])), page.len() - 4);
    }
    assert_eq!(world.refused(&nexus, &[0x12, 0, 0x83, 0, 255, 0], &[]), (5, 0x24, 0));
    assert_eq!(world.refused(&nexus, &[0x12, 1, 0x42, 0, 255, 0], &[]), (5, 0x24, 0));
    assert_eq!(world.run_on(7, &nexus, &[0x12, 0, 0, 0, 96, 0], &[]).data_in[0], 0x7f);
    assert_eq!(world.run_on(0, &nexus, &[0x12, 0, 0, 0, 96, 0], &[]).data_in[0], 0x0c, "the controller");
    assert_eq!(sense(&world.run_on(7, &nexus, &[0; 6], &[])), Some((5, 0x25, 0)));
}

#[test]
fn an_initiator_hears_of_what_happened_first() {
    let world = World::new();
    let nexus = world.fresh(1);
    world.good(&nexus, &[0x12, 0, 0, 0, 96, 0], &[]);
    assert_eq!(world.refused(&nexus, &[0; 6], &[]), (6, 0x29, 0));
    world.good(&nexus, &[0; 6], &[]);
    world.units.add_unit(2, config(), Arc::new(MemoryBacking::new(1 << 20))).expect("adds");
    assert!(world.units.add_unit(2, config(), Arc::new(MemoryBacking::new(1 << 20))).is_err());
    assert_eq!(world.refused(&nexus, &[0; 6], &[]), (6, 0x3f, 0x0e));
    let luns = world.good(&nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]);
    assert_eq!(luns.len(), 8 + 3 * 8);
    assert_eq!(sense(&world.run_on(0, &nexus, &[0; 6], &[])), Some((6, 0x29, 0)), "LUN 0 was never asked");
    world.units.remove_unit(2).expect("removes");
    let list = world.good(&nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]);
    assert_eq!(list.len(), 8 + 2 * 8);
    world.good(&nexus, &[0; 6], &[]);
    world.disk.grow(BLOCKS * 1024);
    world.units.resize_notice(1);
    assert_eq!(world.refused(&nexus, &[0; 6], &[]), (6, 0x2a, 0x09));
    let other = world.nexus(2);
    assert_eq!(
        world.units.manage(&other, lun::encode(1), Management::LogicalUnitReset),
        crate::scsi::ManagementAnswer::Complete
    );
    assert_eq!(world.good(&nexus, &[0x03, 1, 0, 0, 252, 0], &[])[..4], [0x72, 6, 0x29, 3]);
    world.good(&nexus, &[0; 6], &[]);
}

#[test]
fn capacity_and_its_provisioning() {
    let world = World::new();
    let nexus = world.nexus(1);
    assert_eq!(world.good(&nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]), [0, 0, 15, 255, 0, 0, 2, 0]);
    assert_eq!(world.refused(&nexus, &[0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[]), (5, 0x24, 0));
    let data = world.good(&nexus, &cdb16(0x9e, 0x10, 0, 32), &[]);
    assert_eq!(data[..16], [0, 0, 0, 0, 0, 0, 15, 255, 0, 0, 2, 0, 0, 3, 0xc0, 0]);
    world.disk.grow(1 << 42);
    world.good(&nexus, &cdb16(0x9e, 0x10, 0, 32), &[]);
    assert_eq!(world.good(&nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[])[..4], [255; 4]);
}

#[test]
fn mode_pages_change_for_all() {
    let world = World::new();
    let (nexus, other) = (world.nexus(1), world.nexus(2));
    let page =
        |code: u8, control: u8| world.good(&nexus, &[0x1a, 8, control << 6 | code, 0, 255, 0], &[])[4..].to_vec();
    assert_eq!(page(0x08, 0)[2] & 4, 4, "the cache is on");
    assert_eq!(page(0x08, 1)[2], 4, "and can be switched");
    let mut list = vec![0, 0, 0, 0];
    list.extend(page(0x0a, 0));
    list[4] &= 0x3f;
    list[6] |= 4;
    world.good(&nexus, &[0x15, 0x11, 0, 0, u8::try_from(list.len()).expect("short"), 0], &list);
    assert_eq!(world.refused(&other, &[0; 6], &[]), (6, 0x2a, 0x01));
    assert_eq!(world.run(&other, &[0xff; 6], &[]).sense[0], 0x72, "descriptors from now on");
    list[7] ^= 0x80;
    assert_eq!(world.refused(&nexus, &[0x15, 0x10, 0, 0, 16, 0], &list), (5, 0x26, 0));
    // saved, and there after a restart
    let again = World::with(world.kept.clone(), config());
    let nexus = again.nexus(1);
    assert_eq!(again.run(&nexus, &[0xff; 6], &[]).sense[0], 0x72);
    list[7] ^= 0x80;
    list[8] |= 0x08;
    again.good(&nexus, &[0x15, 0x10, 0, 0, 16, 0], &list);
    assert_eq!(again.refused(&nexus, &cdb10(0x2a, 0, 0, 1), &[0; BLOCK]), (7, 0x27, 2));
    assert_eq!(again.good(&nexus, &[0x1a, 0, 0x3f, 0xff, 255, 0], &[])[2] & 0x80, 0x80);
}

#[test]
fn every_page_can_be_written_back_as_it_was_read() {
    let world = World::new();
    let nexus = world.nexus(1);
    let mut pages = world.good(&nexus, &[0x1a, 8, 0x3f, 0xff, 255, 0], &[]);
    pages[0] = 0;
    let count = pages.windows(4).position(|w| w == [0xdc, 2, 0, 20]).expect("the page") + 20;
    assert_ne!(pages[count..count + 4], [0; 4]);
    // the bit that says what can be saved is not for the way back
    let mut at = 4;
    while at < pages.len() {
        pages[at] &= 0x7f;
        at += if pages[at] & 0x40 == 0 {
            2 + usize::from(pages[at + 1])
        } else {
            4 + usize::from(u16::from_be_bytes([pages[at + 2], pages[at + 3]]))
        };
    }
    let length = u8::try_from(pages.len()).expect("short");
    world.good(&nexus, &[0x15, 0x10, 0, 0, length, 0], &pages);
    pages[count - 3] ^= 1;
    assert_eq!(world.refused(&nexus, &[0x15, 0x10, 0, 0, length, 0], &pages), (5, 0x26, 0));
}

#[test]
fn configuration_changes_are_told() {
    let world = World::new();
    let nexus = world.nexus(1);
    world.units.update_unit(1, UnitConfig { vendor: "OTHER".into(), ..config() }).expect("updates");
    assert_eq!(world.refused(&nexus, &[0; 6], &[]), (6, 0x3f, 0x03));
    world.units.update_unit(1, UnitConfig { read_only: true, ..config() }).expect("updates");
    while world.run(&nexus, &[0; 6], &[]).status == 2 {}
    assert_eq!(world.refused(&nexus, &cdb10(0x2a, 0, 0, 1), &[0; BLOCK]), (7, 0x27, 0));
    assert_eq!(world.refused(&nexus, &cdb10(0x41, 0, 0, 1), &[0; BLOCK]), (7, 0x27, 0));
    assert!(world.units.update_unit(1, UnitConfig { block_bytes: 4096, ..config() }).is_err());
}

#[test]
fn supported_commands_come_from_the_table() {
    let world = World::new();
    let nexus = world.nexus(1);
    let rsoc = |options: u8, opcode: u8, action: u8| {
        world.run(&nexus, &[0xa3, 0x0c, options, opcode, 0, action, 0, 0, 0xff, 0xff, 0, 0], &[])
    };
    let all = rsoc(0x80, 0, 0).data_in;
    assert_eq!(all.len(), 4 + u32::from_be_bytes(all[..4].try_into().expect("4")) as usize);
    let short = rsoc(0, 0, 0).data_in;
    assert_eq!((all.len() - 4) / 20, (short.len() - 4) / 8);
    for d in short[4..].chunks(8) {
        let one = rsoc(if d[5] & 1 == 0 { 1 } else { 2 }, d[0], d[3]).data_in;
        assert_eq!(one[1] & 7, 3, "{d:x?}");
        assert_eq!(one[4], d[0]);
        assert_eq!(one.len(), 4 + usize::from(d[7]));
    }
    assert_eq!(rsoc(1, 0xff, 0).data_in, [0, 1, 0, 0]);
    assert_eq!(sense(&rsoc(1, 0x9e, 0)), Some((5, 0x24, 0)));
    assert_eq!(sense(&rsoc(2, 0x28, 0)), Some((5, 0x24, 0)));
    assert_eq!(rsoc(3, 0x28, 0).data_in[1], 3);
}

#[test]
fn a_linked_chain_of_aca_is_refused() {
    let world = World::new();
    let nexus = world.nexus(1);
    assert_eq!(world.refused(&nexus, &[0, 0, 0, 0, 0, 4], &[]), (5, 0x24, 0));
}
