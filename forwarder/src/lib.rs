//! The forwarder program as a library: configuration, reconciliation, the BPF programs and the commands.

pub mod bpf;
pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod machine;
pub mod reconcile;
pub mod serve;
pub mod state;
pub mod undo;

pub use bpf::object::BPF_OBJECT;
