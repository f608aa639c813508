//! The forwarder program as a library: configuration, reconciliation, the BPF programs and the commands.

pub mod config;
pub mod machine;
pub mod reconcile;
