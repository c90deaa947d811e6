//! Tells a thread's owner that the thread is about to wait: for a device, for the intent log, or for a commit.
//!
//! A front end that lets few threads wait for requests uses it to send another one for the next request.

use std::cell::Cell;

thread_local! {
    static HOOK: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Has `hook` called on this thread each time before it waits. It must be quick, and not wait itself.
pub fn before_each_wait(hook: fn()) {
    HOOK.set(Some(hook));
}

/// Called before a wait that others should not have to sit through.
pub(crate) fn announce() {
    if let Some(hook) = HOOK.get() {
        hook();
    }
}
