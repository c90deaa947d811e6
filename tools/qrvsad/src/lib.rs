//! The QRVSA daemon: it holds the pools, serves the mounts, runs the jobs and answers the management interface.
//!
//! ```text
//!  main      the program: arguments, allocator, log, signals
//!  run       one life: lock, listen, restore, serve, shut down
//!  server    the socket, who may use it, HTTP
//!  http      resources and their handlers, nothing but translation
//!  daemon    what a request does: pools, mounts, jobs, and the rules between them
//!  targets   iSCSI targets, and tgt's management protocol for them
//!  jobs      checks that run in the background
//!  state     what must survive a restart, on disk
//!  engine    what the daemon needs from the storage engine (a trait)
//!  mounter   what it needs from the FUSE front end (a trait)
//! ```
//!
//! Everything below `http` is blocking and runs outside the asynchronous threads, so that a request that waits for a
//! device holds up nobody else.

pub mod config;
pub mod daemon;
pub mod engine;
pub mod engine_core;
pub mod error;
pub mod host;
pub mod http;
pub mod jobs;
pub mod mounter;
pub mod mounter_fuse;
pub mod run;
pub mod server;
pub mod state;
pub mod targets;
