//! Sessions in the full feature phase (RFC 7143 7), and how connections get there.

pub(crate) mod buffers;
pub(crate) mod command;
pub(crate) mod conn;
mod cost;
pub(crate) mod enter;
pub(crate) mod mailbox;
mod manage;
mod order;
pub(crate) mod parked;
mod respond;
mod run;
mod rx;
pub(crate) mod shared;
pub(crate) mod sweep;
pub(crate) mod task;
mod text;
mod tx;
