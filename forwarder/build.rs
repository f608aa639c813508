//! Compiles the XDP and TC programs (package `forwarder-ebpf`) into `$OUT_DIR/forwarder-ebpf`, from where the library
//! includes them, and writes down what their maps look like, in `$OUT_DIR/layouts.rs`.

#[path = "build/bpf_object.rs"]
mod bpf_object;
#[path = "build/bpf_toolchain.rs"]
mod bpf_toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use bpf_object::BpfPackage;

const PROGRAMS: BpfPackage = BpfPackage {
    name: "forwarder-ebpf",
    arguments: &[],
    sources: &[
        "forwarder-ebpf/src",
        "forwarder-ebpf/Cargo.toml",
        "forwarder-common/src",
        "forwarder-common/Cargo.toml",
    ],
};

fn main() -> ExitCode {
    let built = PROGRAMS.build();
    if built != ExitCode::SUCCESS {
        return built;
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    match write_layouts(&out_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Each map that is pinned, by name: its type's number, and how many bytes its keys and values have. Not looked for in the object
/// by each command, which would take it most of its time and a hundred megabytes.
fn write_layouts(out_dir: &Path) -> Result<()> {
    let object = fs::read(out_dir.join(PROGRAMS.name)).context("cannot read the BPF object")?;
    let object = aya_obj::Object::parse(&object).context("the BPF object that was just built is damaged")?;
    let mut lines: Vec<String> = object
        .maps
        .iter()
        // The sections with its global variables, which every interface has its own of.
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, map)| format!("({name:?}, {}, {}, {}),", map.map_type(), map.key_size(), map.value_size()))
        .collect();
    lines.sort();
    fs::write(out_dir.join("layouts.rs"), format!("&[{}]", lines.concat())).context("cannot write layouts.rs")
}
