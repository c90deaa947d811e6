//! Devices made into one space: members, zones, block groups, and who may use which rows.
//!
//! A [`space::Space`] is the pool without what lies on it: it maps (group, column, row) to (device, offset), hands rows out
//! and takes them back. Records, trees and transaction groups build on it.

pub mod bitmap;
pub mod epoch;
pub mod format;
pub mod group;
pub mod member;
pub mod space;
