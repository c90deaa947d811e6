//! qrvsad.
fn main() {}
