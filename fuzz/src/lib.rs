//! Fuzz targets for libFuzzer (`targets/`), and what they need beside the core's own ([`forwarder_common::fuzz`]).
//!
//! `cargo xtask fuzz` runs them; `cargo test` gives each a bounded number of inputs that are always the same.

pub mod config;
