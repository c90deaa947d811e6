//! Third-party copy (SPC-4 5.17): EXTENDED COPY in both forms, copying with tokens (ODX), and what is asked about them. A copy runs to its end
//! on the thread of its command; it is between units of one target.

mod engine;
mod extended;
mod results;
mod token;
mod vpd;

pub(crate) use extended::{extended_copy_lid1, extended_copy_lid4};
pub(crate) use results::{Results, copy_status, copy_status_lid4, operating_parameters, token_information};
pub(crate) use token::{Tokens, populate, write_using};
pub(crate) use vpd::page as vpd_page;

/// Descriptors of copy sources and destinations in one command.
const CSCD_MAX: u16 = 16;
/// Segment descriptors in one command.
const SEGMENTS_MAX: u16 = 64;
/// Bytes of all descriptors of one command.
const DESCRIPTOR_BYTES_MAX: u32 = CSCD_MAX as u32 * 32 + SEGMENTS_MAX as u32 * 28;
/// Bytes that one segment, and one use of a token, copies.
const COPY_BYTES_MAX: u64 = 1 << 30;
/// Runs of blocks in one command about tokens.
const TOKEN_RUNS_MAX: u16 = 64;
