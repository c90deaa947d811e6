//! Whatever arrives, there is an answer.

use proptest::prelude::*;

use super::*;
use crate::scsi::table::COMMANDS;

fn cdbs() -> impl Strategy<Value = Vec<u8>> {
    let known =
        (0..COMMANDS.len(), prop::collection::vec(any::<u8>(), 15), any::<u64>()).prop_map(|(n, mut rest, keep)| {
            // few bits, so that more gets past the first checks
            for (i, byte) in rest.iter_mut().enumerate() {
                if keep >> (i * 2) & 3 != 0 {
                    *byte = 0;
                }
            }
            let entry = &COMMANDS[n];
            if let Some(action) = entry.action {
                rest[0] = rest[0] & 0xe0 | action.to_be_bytes()[1];
            }
            [vec![entry.opcode], rest].concat()
        });
    prop_oneof![4 => known, 1 => prop::collection::vec(any::<u8>(), 0..40)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_cdb_gets_an_answer(
        commands in prop::collection::vec((cdbs(), prop::collection::vec(any::<u8>(), 0..600), 0..4u64, any::<bool>()), 1..24)
    ) {
        let world = World::new();
        world.units.unit(1).expect("unit").sanitize.hasty.store(true, std::sync::atomic::Ordering::Relaxed);
        let nexuses = [world.nexus(1), world.nexus(2)];
        for (cdb, data, number, who) in commands {
            let response = world.run_on(number, &nexuses[usize::from(who)], &cdb, &data);
            prop_assert!([0, 2, 4, 8, 0x18].contains(&response.status));
            prop_assert_eq!(response.status == 2, !response.sense.is_empty());
            prop_assert!(response.data_in.len() <= 17 << 20);
            sense(&response);
        }
    }
}
