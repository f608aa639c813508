//! Packet rates.
fn main() {}
