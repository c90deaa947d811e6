//! Records: what one pointer names. Their addresses, their erasure code and their checksums.

pub mod pointer;
