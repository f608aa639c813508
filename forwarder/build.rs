//! Compiles the XDP and TC programs (package `forwarder-ebpf`) into `$OUT_DIR/forwarder-ebpf`, from where the library
//! includes them.

#[path = "build/bpf_object.rs"]
mod bpf_object;
#[path = "build/bpf_toolchain.rs"]
mod bpf_toolchain;

use std::process::ExitCode;

use bpf_object::BpfPackage;

fn main() -> ExitCode {
    BpfPackage {
        name: "forwarder-ebpf",
        arguments: &[],
        sources: &[
            "forwarder-ebpf/src",
            "forwarder-ebpf/Cargo.toml",
            "forwarder-common/src",
            "forwarder-common/Cargo.toml",
        ],
    }
    .build()
}
