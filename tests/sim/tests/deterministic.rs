//! The same seed is the same world, byte for byte; and a few worlds and workloads hold what is promised.

use qrvsa_sim::explore::{self, GEOMETRIES, Start};
use qrvsa_sim::world;

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 60, 130, 190, 250, 299] {
        let (a, b) = (world::run(seed, false), world::run(seed, false));
        assert!(a.requests > 100, "seed {seed} did nothing");
        assert_eq!((a.trace, a.requests, a.operations), (b.trace, b.requests, b.operations), "seed {seed}");
        assert_eq!(a.table, b.table, "seed {seed}");
        assert_eq!(a.violation, None, "seed {seed}");
    }
    assert_ne!(world::run(3, false).trace, world::run(4, false).trace);
}

#[test]
fn a_workload_holds_at_every_write() {
    for (index, shape) in GEOMETRIES.into_iter().enumerate() {
        let start = Start::new(shape).unwrap();
        let found = explore::explore(&start, 5, index).unwrap();
        assert!(found.states > 10, "{} states", found.states);
        assert_eq!(found.violations, Vec::<String>::new());
        let again = explore::explore(&start, 5, index).unwrap();
        assert_eq!(found.states, again.states);
    }
}
