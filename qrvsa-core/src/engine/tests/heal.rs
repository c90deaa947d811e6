//! Repair of what a read finds damaged.

use std::sync::atomic::AtomicU64;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;
use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::object::{Items, KIND_EXTENT, ReadRequest};
use crate::record::context::with_object;
use crate::record::pointer::Pointer;
use crate::record::store::RecordStore;

/// Takes all that is logged, so that it is put together.
struct Everything;

impl Subscriber for Everything {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        struct Look;
        impl tracing::field::Visit for Look {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                let _ = format!("{value:?}");
            }
        }
        event.record(&mut Look);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The name of the object is looked up for the log, which reads: with the group's lock held, a rebuild that waits for it in
/// between would stop the pool.
#[test]
fn the_log_names_objects_while_no_lock_of_the_group_is_held() {
    let world = World::new(geometry(2, 1), 3, 80, 5);
    let data = pattern(1, 100_000);
    world.write(1, 0, &data);
    world.pool().commit().unwrap();
    let key = Key::new(1, KIND_EXTENT, 0);
    let value = world.dataset().items.get(key).unwrap().unwrap();
    let (pointer, _) = Pointer::decode(&value).unwrap();
    let fragments = world.pool().locate(world.dataset().id, 1).unwrap();
    let damaged = fragments.iter().find(|f| f.column == 0 && f.file_offset == 0).unwrap();
    world.disks[usize::from(damaged.device_index)].1.flip(damaged.device_offset + 7, 0xff);

    let space = world.pool().space.clone();
    let group = space.group(pointer.group).unwrap();
    let records = RecordStore::new(space, 1 << 20);
    let (named, locked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    records.set_describe({
        let (named, locked) = (named.clone(), locked.clone());
        move |_, _| {
            named.fetch_add(1, Ordering::Relaxed);
            locked.fetch_add(u64::from(group.io.try_write().is_none()), Ordering::Relaxed);
            "it".to_owned()
        }
    });
    let mut buf = AlignedBuf::zeroed(usize::from(pointer.blocks) * BLOCK_SIZE);
    tracing::subscriber::with_default(Everything, || {
        let _pin = world.pool().space.epoch.pin();
        let mut requests = [ReadRequest { pointer: &pointer, first_block: 0, out: &mut buf }];
        with_object(1, 1, || records.read(&mut requests, 0)).unwrap();
    });
    assert!(named.load(Ordering::Relaxed) >= 2, "the mismatch and the repair were logged");
    assert_eq!(locked.load(Ordering::Relaxed), 0, "the group was locked while its name was looked up");
    world.drop_caches();
    assert!(world.read(1, 0, data.len()).unwrap() == data);
    assert_eq!(world.scrub(), (0, 0, 0), "it was repaired");
}
