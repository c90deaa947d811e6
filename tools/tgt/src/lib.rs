//! What people who run tgt already have: its management protocol, its command line and its configuration file.
//!
//! ```text
//!  wire      requests and replies on the management socket, as bytes
//!  payload   the text a request carries
//!  number    numbers as tgt's command line reads them
//!  options   the option table and the getopt way of reading it
//!  command   a tgtadm command line becomes a request, or an error in tgt's words
//!  conf      targets.conf
//! ```
//!
//! Everything here is pure: no sockets, no files (but for `include` in [`conf`], through a function the caller gives).

pub mod command;
pub mod conf;
pub mod number;
pub mod options;
pub mod payload;
pub mod wire;
