//! VHDX images ([MS-VHDX] version 8): the format and what reads and writes it.
//!
//! [`format`](mod@format) knows bytes: decoders that are total on any input, encoders, and arithmetic. It does no I/O.

pub mod check;
pub mod file;
pub mod format;
pub mod repair;
