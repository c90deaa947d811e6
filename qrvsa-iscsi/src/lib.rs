//! An iSCSI target: RFC 7143 sessions over TCP in front of a SCSI device server (SPC, SBC) over any block storage.
//!
//! The crate stands alone: storage comes through [`backing::Backing`], everything that must survive a restart through
//! [`scsi::Persistence`].
//!
//! ```text
//!   session side (PDUs, login, CHAP, flow control, portals)
//!        |  scsi::DeviceServer: one target's logical units
//!   scsi side (commands, mode pages, reservations, task management)
//!        |  backing::Backing: bytes
//!   file, block device, null; a pool volume or a VHDX file from outside
//! ```

pub mod backing;
pub mod config;
pub mod fuzz;
pub mod info;
pub mod login;
mod name;
mod params;
pub mod pdu;
pub mod scsi;
mod secret;
pub mod service;
mod session;
