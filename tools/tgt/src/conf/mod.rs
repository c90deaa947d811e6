//! tgt's configuration file: the grammar it is written in, and what it says about targets.

mod grammar;
mod targets;

pub use grammar::{Item, Parser, Source};
pub use targets::{Configuration, Lun, Target, User, read};
