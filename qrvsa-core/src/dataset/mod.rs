//! A dataset: a named tree of items plus the contents of its objects, seen through the open and the syncing transaction
//! group.

pub mod handle;
pub mod items;
pub mod memtable;
pub mod nodes;
pub mod store;
pub mod view;

pub use handle::{Dataset, Host};
pub use memtable::Memtable;
pub use view::View;
