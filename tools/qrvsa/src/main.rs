//! qrvsa.
fn main() {}
