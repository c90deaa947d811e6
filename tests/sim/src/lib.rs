//! The deterministic fault simulator of QRVSA.
//!
//! Whole pools run in memory on the engine's own seams: devices ([`bus`]), clock ([`clock`]), random numbers, and the
//! places where background work waits. [`explore`] stops short workloads at every write; [`world`] makes a world from a
//! seed and lets it suffer; [`verify`], [`model`] and [`volumes`] say what has to hold. `docs/testing.md` has the figures.

pub mod bus;
pub mod clock;
pub mod explore;
pub mod fault;
pub mod golden;
pub mod image;
pub mod model;
pub mod plan;
pub mod runs;
pub mod session;
pub mod verify;
pub mod volumes;
pub mod workloads;
pub mod world;
