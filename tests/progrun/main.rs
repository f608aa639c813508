//! Packets through the loaded programs: `BPF_PROG_TEST_RUN` on tables of fixtures, in a network namespace with real
//! routes and neighbours.
//!
//! `plan.rs` has the addresses, `world.rs` loads the programs and runs packets, `fixture.rs` says what a packet must
//! become on each hook and compares bytes, verdict and every counter; each other file is one subject. Rules are in
//! `tests/fixtures`. Packets, and what they must become, are built with the builder of the core's own tests: byte by
//! byte, with checksums summed from scratch.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod begin;
mod connection;
mod differential;
mod drops;
mod failing;
mod fixture;
mod flows;
mod fragments;
mod hairpin;
mod icmp_errors;
mod patched;
#[allow(dead_code, reason = "the builder serves other tests too")]
#[path = "../../forwarder-common/src/test_packet.rs"]
mod test_packet;

// Where the packet builder looks for the trait.
use forwarder_common::packet;

mod plan;
mod prefixes;
mod programs;
mod reload;
mod stack;
mod stateless;
mod sweep;
mod two_cpus;
mod untouched;
mod world;
