//! Real kernel mounts over a filesystem in memory: what a program sees through the mount.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod attributes;
mod contents;
mod directories;
mod disks;
mod locks;
mod mounting;
mod names;
mod privileges;
