//! The quick share of the fuzzers: crashers, corpus and a fixed number of changed inputs, the same in every run.

use std::collections::BTreeSet;

use qrvsa_fuzz::corpus;
use qrvsa_fuzz::run::{Until, fuzz};
use qrvsa_fuzz::targets::TARGETS;

/// Bytes that all committed inputs may take together.
const CORPUS_BYTES_MAX: usize = 500 << 10;

fn run(name: &str, inputs: u64) {
    let target = TARGETS.iter().find(|t| t.name == name).expect("a target");
    let keep_in = std::env::temp_dir().join("qrvsa-fuzz");
    let outcome = fuzz(target, 1, Until::Inputs(inputs), &keep_in).expect("a corpus");
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert!(outcome.inputs >= inputs);
    // changed inputs get past checksums and magic numbers
    assert!(outcome.accepted * 20 > outcome.inputs, "{} of {} accepted", outcome.accepted, outcome.inputs);
}

macro_rules! quick {
    ($($test:ident $name:literal $inputs:literal,)*) => {
        $(
            #[test]
            fn $test() {
                run($name, $inputs);
            }
        )*

        #[test]
        fn every_target_is_here() {
            let here: BTreeSet<&str> = [$($name),*].into();
            assert_eq!(here, TARGETS.iter().map(|t| t.name).collect());
        }
    };
}

quick! {
    label "label" 20_000,
    uberblock "uberblock" 5_000,
    pool_entries "pool-entries" 20_000,
    tree_node "tree-node" 10_000,
    record_pointer "record-pointer" 20_000,
    intent_log "intent-log" 20_000,
    items "items" 20_000,
    api_requests "api-requests" 10_000,
    words "words" 20_000,
    vhdx_structures "vhdx-structures" 5_000,
    vhdx_log "vhdx-log" 10_000,
    vhdx_image "vhdx-image" 2_000,
    iscsi_pdus "iscsi-pdus" 20_000,
    iscsi_text "iscsi-text" 10_000,
    iscsi_login "iscsi-login" 10_000,
    scsi_commands "scsi-commands" 4_000,
    tgt_request "tgt-request" 20_000,
    tgtadm "tgtadm" 10_000,
    targets_conf "targets-conf" 10_000,
}

#[test]
fn the_corpus_is_small_and_what_the_encoders_write() {
    let mut bytes = 0;
    for target in TARGETS {
        let committed: BTreeSet<Vec<u8>> =
            corpus::seeds(target).expect("a folder").into_iter().map(|(_, i)| i).collect();
        let made: BTreeSet<Vec<u8>> = (target.seeds)().into_iter().collect();
        assert!(!made.is_empty() && committed == made, "corpus of {}: run `qrvsa-fuzz corpus`", target.name);
        bytes += committed.iter().map(Vec::len).sum::<usize>();
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}
