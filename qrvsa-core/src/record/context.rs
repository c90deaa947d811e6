//! Which object the calling thread works for, so that the log can name the file when a device returns wrong bytes.

use std::cell::Cell;

thread_local! {
    static OBJECT: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// Runs `work` on behalf of an object of a dataset.
pub fn with_object<T>(dataset: u64, object: u64, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<(u64, u64)>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OBJECT.set(self.0);
        }
    }
    let _restore = Restore(OBJECT.replace(Some((dataset, object))));
    work()
}

/// The (dataset, object) this thread works for.
pub fn current() -> Option<(u64, u64)> {
    OBJECT.get()
}
