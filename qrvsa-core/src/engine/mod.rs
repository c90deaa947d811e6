//! The running pool: the layers tied together.
//!
//! [`Pool`] owns everything between the devices and the datasets. `commit` writes a transaction group, `create` and
//! `import` bring a pool into being, `scrub`, `rebuild` and `check` walk it, `status` tells how it is.

pub mod admin;
pub mod blobs;
pub mod check;
mod check_deep;
pub mod commit;
pub mod create;
pub mod import;
pub mod open;
pub mod pool;
pub mod pool_io;
pub mod rebuild;
pub mod scrub;
pub mod status;
#[cfg(test)]
mod tests;
pub mod volumes;

pub use pool::{Options, Pool};
