//! Records: what one pointer names. Their addresses, their erasure code, their checksums, and the batched I/O on them.

pub mod checksum;
pub mod context;
pub mod erasure;
pub mod gf16;
pub mod pointer;
pub mod reader;
pub mod recover;
pub mod store;
pub mod writer;
