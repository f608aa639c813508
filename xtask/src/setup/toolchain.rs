//! The compiler and linker for BPF, and cargo's companions.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::packages;
use crate::{
    bpf_toolchain::{self, BpfToolchain},
    progress::Step,
    workspace::{self, cargo, find_program, target_dir},
};

/// Debian's rustc with a compiled `core` for BPF; it lives in /usr/bin and leaves rustup alone.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// The LLVM of Debian's rustc-web, which bpf-linker has to match.
const LLVM: &str = "22";
/// bpf-linker releases of this series can be built with [`LLVM`].
const BPF_LINKER: &str = "bpf-linker@^0.13";

/// What compiles BPF here.
pub(crate) struct Ready {
    pub(crate) toolchain: BpfToolchain,
    pub(crate) linker: PathBuf,
}

/// Makes sure that there is a bpf-linker and a compiler that suits it.
pub(crate) fn ensure_bpf() -> Result<Ready> {
    let linker = match bpf_toolchain::find_linker() {
        Some(linker) => linker,
        None => install_linker(&[])?,
    };
    if let Some(toolchain) = find(&linker)? {
        return Ok(Ready { toolchain, linker });
    }
    packages::install(&DEBIAN_COMPILER)?;
    if let Some(toolchain) = find(&linker)? {
        return Ok(Ready { toolchain, linker });
    }
    // Debian's compiler is there now, so it is the linker that is too old for it.
    let linker = install_linker(&["--force"])?;
    let Some(toolchain) = find(&linker)? else {
        bail!(
            "{} cannot read what any compiler here writes for BPF: it must be built with the LLVM of the compiler or a \
             later one. Remove it and run again: cargo xtask setup",
            linker.display()
        );
    };
    Ok(Ready { toolchain, linker })
}

fn find(linker: &Path) -> Result<Option<BpfToolchain>> {
    let scratch = target_dir().join("xtask");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    Ok(bpf_toolchain::find(linker, &scratch))
}

fn install_linker(options: &[&str]) -> Result<PathBuf> {
    packages::install(&[&format!("llvm-{LLVM}-dev"), "g++", "zlib1g-dev", "libzstd-dev"])?;
    let step = Step::begin(format!("Building bpf-linker with LLVM {LLVM} (a minute or two)"));
    step.run(
        cargo()
            .args(["install", "--locked", BPF_LINKER, "--no-default-features"])
            .args(["--features", &format!("llvm-{LLVM}")])
            .args(options)
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}")),
    )?;
    step.done();
    bpf_toolchain::find_linker()
        .context("cargo install put bpf-linker neither into the search path nor into ~/.cargo/bin")
}

/// Makes sure that `cargo fmt` and `cargo clippy` exist.
pub(crate) fn ensure_components() -> Result<()> {
    let missing: Vec<&str> =
        ["fmt", "clippy"].into_iter().filter(|component| !runs(cargo().args([*component, "--version"]))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if find_program("rustup").is_some() {
        let step = Step::begin("Adding rustfmt and clippy to the rustup toolchain");
        step.run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))?;
        step.done();
        return Ok(());
    }
    packages::install(&["rustfmt-web", "rust-web-clippy"])
}

/// Clippy for the BPF programs, with the compiler they are built with: another one's clippy cannot read its `core`.
/// Installs it if needed.
pub(crate) fn bpf_clippy(ready: &Ready) -> Result<Command> {
    let toolchain = &ready.toolchain;
    let present = || runs(toolchain.program("cargo-clippy").arg("--version"));
    if !present() {
        if let Some(name) = toolchain.rustup_name() {
            let step = Step::begin(format!("Adding clippy to {}", toolchain.name));
            step.run(Command::new("rustup").args(["component", "add", "clippy", "--toolchain", name]))?;
            step.done();
        } else {
            packages::install(&["rust-web-clippy"])?;
        }
        if !present() {
            bail!("{} has no working clippy", toolchain.name);
        }
    }
    let mut clippy = toolchain.program("cargo-clippy");
    clippy
        .current_dir(workspace::root())
        .env("RUSTC_BOOTSTRAP", toolchain.bootstrap())
        // The instruction set that they are built for: assembly that uses its registers is an error without.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", "-Ctarget-cpu=v3")
        .args(["clippy", "--package", "forwarder-ebpf", "--no-deps", "--target", bpf_toolchain::TARGET])
        .arg("--target-dir")
        .arg(target_dir().join("bpf-lint"));
    if toolchain.core == bpf_toolchain::Core::Sources {
        clippy.args(["-Z", "build-std=core"]);
    }
    clippy.args(["--", "--deny", "warnings"]);
    Ok(clippy)
}

/// A command of cargo's that comes from crates.io.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subcommand {
    /// Licences and sources of dependencies.
    Deny,
    /// Dependencies that nothing uses.
    Machete,
    /// libFuzzer.
    Fuzz,
}

impl Subcommand {
    const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Machete => "machete",
            Self::Fuzz => "fuzz",
        }
    }

    /// Whether cargo has it.
    pub(crate) fn exists(self) -> bool {
        runs(cargo().args([self.name(), "--version"]))
    }

    /// Makes sure that cargo has it.
    pub(crate) fn ensure(self) -> Result<()> {
        if self.exists() {
            return Ok(());
        }
        let package = format!("cargo-{}", self.name());
        let step = Step::begin(format!("Building {package} (some minutes)"));
        step.run(cargo().args(["install", "--locked", &package]))?;
        step.done();
        Ok(())
    }
}

fn runs(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
