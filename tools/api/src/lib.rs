//! The management interface of QRVSA: what the daemon and its clients say to each other.
//!
//! JSON over HTTP/1.1 on a Unix socket. The resources are the ones a network API would have; the socket is only the
//! transport with the strongest authentication (the kernel names the peer). [`routes`] lists every resource, [`types`]
//! the bodies, [`error`] the one error body and what a client does with it, [`client`] a blocking client.
//!
//! Rules that keep old clients and new daemons (and the reverse) working together:
//! - unknown fields are ignored, fields are only added, and every added field has a default;
//! - unknown states and error kinds decode to an `Unknown`/`Internal` variant, never to a decoding error;
//! - sizes are in bytes, times in seconds since the epoch (UTC), rates in bytes per second; units end the names.

pub mod client;
pub mod error;
pub mod names;
pub mod routes;
#[macro_use]
pub mod types;
pub mod target;
pub mod transfer;
pub mod units;

pub use client::Client;
pub use error::{ApiError, ErrorKind};
pub use target::*;
pub use types::*;

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/qrvsa/qrvsad.sock";
/// The environment variable that overrides [`DEFAULT_SOCKET`] in every client and in the daemon.
pub const SOCKET_ENV: &str = "QRVSA_SOCKET";
