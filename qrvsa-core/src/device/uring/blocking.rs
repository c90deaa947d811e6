//! The fallback where io_uring is not permitted: the same request as blocking system calls, one after the other.

use super::entry::{Entry, Step};

/// Runs the request to its end and reports it.
pub fn execute(mut entry: Entry) {
    loop {
        let result = entry.call();
        match entry.advance(result) {
            Step::Again => {}
            Step::Finished(outcome) => return entry.finish(outcome),
        }
    }
}
