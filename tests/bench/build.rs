//! Compiles the bench's BPF programs (package `forwarder-bench-ebpf`) into `$OUT_DIR/forwarder-bench-ebpf`.

#[path = "../../forwarder/build/bpf_object.rs"]
mod bpf_object;
#[path = "../../forwarder/build/bpf_toolchain.rs"]
mod bpf_toolchain;

use std::process::ExitCode;

use bpf_object::BpfPackage;

fn main() -> ExitCode {
    BpfPackage {
        name: "forwarder-bench-ebpf",
        arguments: &["--features", "programs"],
        sources: &["tests/bench-ebpf/src", "tests/bench-ebpf/Cargo.toml"],
    }
    .build()
}
