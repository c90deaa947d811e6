//! How long an import takes after a crash with a long intent log: `cargo bench -p qrvsa-core --bench import`.
//!
//! A 2+1 pool of three sparse files takes small fsyncs until the log holds `LOG_MIB` (1,024 with `--bench`, 8 without, for
//! a quick look that it runs), is then abandoned without a commit, and imported.

use std::sync::Arc;
use std::time::Instant;

use qrvsa_core::device::{Device, OpenOptions, open};
use qrvsa_core::engine::open::Candidate;
use qrvsa_core::engine::{Options, Pool};
use qrvsa_core::env::Environment;
use qrvsa_core::fs::store::{Intent, ObjectRef, Store};
use qrvsa_core::pool::space::Geometry;

const WRITE_BYTES: usize = 128 << 10;
/// Writes go round over this much of one object, so that dirty memory stays small while the log grows.
const SPAN_BYTES: u64 = 64 << 20;

fn main() {
    let full = std::env::args().any(|a| a == "--bench");
    let log_mib: u64 = if full { 1024 } else { 8 };
    let dir = tempfile::Builder::new().prefix("qrvsa-import").tempdir_in("/var/tmp").expect("a temporary directory");
    let paths: Vec<_> = (0..3).map(|i| dir.path().join(format!("{i}.img"))).collect();
    let devices = |create: bool| -> Vec<Arc<dyn Device>> {
        let size = create.then_some(64 << 30);
        let options = OpenOptions { create_size: size, exclusive: true, read_only: false };
        paths.iter().map(|p| open(p, options).expect("the file opens")).collect()
    };
    let options = Options { memory_bytes: 1 << 30, log_bytes: Some((log_mib + 256) << 20), ..Options::default() };
    let geometry = Geometry::new(2, 1).expect("2+1 is a geometry");
    let pool = Pool::create(Environment::system(), options.clone(), "bench", Some(geometry), devices(true))
        .expect("the pool is made");
    let dataset = pool.dataset("").expect("a pool has a filesystem");
    let object = ObjectRef { id: dataset.new_object_id(), record_size: 128 << 10 };
    let committed = pool.committed_txg();
    let data = vec![0x5a; WRITE_BYTES];
    let began = Instant::now();
    let writes = log_mib * (1 << 20) / WRITE_BYTES as u64;
    for i in 0..writes {
        let tx = dataset.begin(Intent::Grow).expect("there is room");
        let offset = i * WRITE_BYTES as u64 % SPAN_BYTES;
        Store::write(&*dataset, &tx, object, offset, &data).expect("the write is taken");
        drop(tx);
        let ticket = dataset.log_object(object, &[]).expect("the log takes it");
        dataset.wait_durable(ticket).expect("it is durable");
    }
    let wrote = began.elapsed().as_secs_f64();
    assert_eq!(pool.committed_txg(), committed, "everything is in the log, nothing was committed");
    drop(dataset);
    pool.abandon();
    drop(pool);

    let began = Instant::now();
    let candidates = devices(false).into_iter().map(|d| Candidate::new(d).expect("a member")).collect();
    let pool = Pool::import(Environment::system(), options, candidates).expect("the pool imports");
    let took = began.elapsed().as_secs_f64();
    let dataset = pool.dataset("").expect("a pool has a filesystem");
    let mut back = vec![0; WRITE_BYTES];
    Store::read(&*dataset, object, 0, &mut back).expect("it reads");
    assert!(back == data, "what was replayed is what was written");
    println!(
        "import after a crash with {log_mib} MiB of intent log: {took:.2} s ({writes} fsyncs had taken {wrote:.1} s)"
    );
    drop(dataset);
    pool.close().expect("the pool closes");
}
