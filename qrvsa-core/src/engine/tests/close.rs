//! The end of a pool's service: what was acknowledged is stored, and what comes too late is refused.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::error::ErrorKind;

/// Writes by somebody who keeps a filesystem open go on until they are refused. All that were not refused are there after
/// the next import.
#[test]
fn a_write_is_in_the_last_commit_or_refused() {
    const AFTERWARDS_MAX: u64 = 1000;
    let mut world = World::new(geometry(1, 1), 2, 80, 3);
    let ids = [1u64, 2, 3];
    ids.iter().for_each(|id| world.write(*id, 0, &[0; 8]));
    world.pool().commit().unwrap();
    let (done, closed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writers = ids.map(|id| {
        let (ds, done, closed) = (world.dataset(), done.clone(), closed.clone());
        std::thread::spawn(move || {
            let (mut written, mut afterwards) = (0u64, 0);
            loop {
                let tx = match ds.begin(Intent::Grow) {
                    Ok(tx) => tx,
                    Err(e) => return (written, Some(e)),
                };
                Store::write(&*ds, &tx, object(id), 0, &(written + 1).to_le_bytes()).unwrap();
                drop(tx);
                written += 1;
                done.fetch_add(1, Ordering::Relaxed);
                afterwards += u64::from(closed.load(Ordering::Acquire));
                if afterwards == AFTERWARDS_MAX {
                    return (written, None);
                }
            }
        })
    });
    while done.load(Ordering::Relaxed) < 100 {
        std::thread::yield_now();
    }
    let ds = world.dataset();
    world.pool().close().unwrap();
    closed.store(true, Ordering::Release);
    let written = writers.map(|writer| {
        let (written, refused) = writer.join().unwrap();
        let refused = refused.expect("writes go on after the pool was closed");
        assert_eq!(refused.kind(), ErrorKind::Suspended, "{refused}");
        assert!(refused.to_string().contains("exported"), "{refused}");
        written
    });
    assert_eq!(ds.log_object(object(1), &[]).map(|_| ()).unwrap_err().kind(), ErrorKind::Suspended);
    assert_eq!(ds.sync_all().unwrap_err().kind(), ErrorKind::Suspended);
    world.import(|_| true).unwrap();
    for (id, written) in ids.into_iter().zip(written) {
        assert_eq!(world.read(id, 0, 8).unwrap(), written.to_le_bytes(), "object {id}");
    }
    world.check();
}

#[test]
fn an_abandoned_pool_takes_nothing() {
    let mut world = World::new(geometry(1, 1), 2, 80, 4);
    let ds = world.dataset();
    world.pool.take().inspect(|pool| pool.abandon());
    assert_eq!(ds.begin(Intent::Grow).map(drop).unwrap_err().kind(), ErrorKind::Suspended);
}
