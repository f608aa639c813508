// Compiles a package of BPF programs into `$OUT_DIR/PACKAGE`. Shared by the build scripts of the packages that include
// such an object.
//
// `aya-build` does the same in fewer lines, but fixes what this needs to choose: the compiler's flags (instruction set;
// path remapping, so that the object does not depend on where it was built), RUSTC_BOOTSTRAP for a compiler that is not
// nightly, the linker's place, and whether a nightly has `rust-src` at all. It also turns each line of the inner cargo
// into a warning.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use crate::bpf_toolchain::{self, BpfToolchain, Core, TARGET};

/// Defined in the workspace's Cargo.toml: the same object for debug and release builds of the host program.
const PROFILE: &str = "bpf";

/// A package whose only program is to be compiled for BPF.
pub(crate) struct BpfPackage {
    /// Its name, its program's, and the object's.
    pub(crate) name: &'static str,
    /// What else cargo is given.
    pub(crate) arguments: &'static [&'static str],
    /// What the object is made from, relative to the workspace, besides the workspace's own files.
    pub(crate) sources: &'static [&'static str],
}

impl BpfPackage {
    /// The whole build script.
    pub(crate) fn build(&self) -> ExitCode {
        if let Err(error) = self.try_build() {
            // Cargo prints this line last, below the compiler's own messages.
            println!("cargo::error={error:#}");
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }

    fn try_build(&self) -> Result<()> {
        let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        let workspace = package
            .ancestors()
            .find(|directory| directory.join("Cargo.lock").is_file())
            .with_context(|| format!("the package in {} is not inside its workspace", package.display()))?;
        for source in self.sources.iter().chain(&["Cargo.toml", "Cargo.lock"]) {
            println!("cargo::rerun-if-changed={}", workspace.join(source).display());
        }
        println!("cargo::rerun-if-env-changed={}", bpf_toolchain::TOOLCHAIN_VARIABLE);

        let Some(linker) = bpf_toolchain::find_linker() else {
            bail!("bpf-linker, which makes BPF objects, is not installed; run this once: cargo xtask setup");
        };
        let out_dir = PathBuf::from(variable("OUT_DIR")?);
        let Some(toolchain) = bpf_toolchain::find(&linker, &out_dir) else {
            bail!(
                "no Rust toolchain here compiles for BPF ({TARGET}) in a form that {} reads; run this once: cargo xtask setup",
                linker.display()
            );
        };
        println!("cargo::rerun-if-changed={}", linker.display());
        self.compile(workspace, &out_dir, &toolchain, &linker)
    }

    /// Compiles the workspace's package with whatever `out_dir` holds of it, into `out_dir/NAME`.
    pub(crate) fn compile(
        &self,
        workspace: &Path,
        out_dir: &Path,
        toolchain: &BpfToolchain,
        linker: &Path,
    ) -> Result<()> {
        let target_dir = out_dir.join("bpf");

        let mut cargo = toolchain.program("cargo");
        cargo
            .current_dir(workspace)
            .args(["build", "--package", self.name, "--bins"])
            .args(["--profile", PROFILE, "--target", TARGET])
            .args(self.arguments)
            .arg("--target-dir")
            .arg(&target_dir);
        if toolchain.core == Core::Sources {
            cargo.args(["-Z", "build-std=core"]);
        }
        cargo
            .env("RUSTC_BOOTSTRAP", toolchain.bootstrap())
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace, out_dir).join("\x1f"));

        let status = cargo.status().with_context(|| format!("cannot start {cargo:?}"))?;
        if !status.success() {
            bail!(
                "compiling {} failed with {} ({}); the compiler's messages are above. If they are about the \
                 toolchain and not the source, this repairs it: cargo xtask setup",
                self.name,
                toolchain.name,
                toolchain.version
            );
        }
        let object = target_dir.join(TARGET).join(PROFILE).join(self.name);
        fs::copy(&object, out_dir.join(self.name))
            .with_context(|| format!("the build made no {}", object.display()))?;
        Ok(())
    }
}

fn flags(workspace: &Path, out_dir: &Path) -> Vec<String> {
    // Outside of a build script it is for this machine.
    let architecture = match env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned()) {
        riscv if riscv.starts_with("riscv64") => "riscv64".to_owned(),
        other => other,
    };
    let mut flags = vec![
        // aya-ebpf picks the layout of `pt_regs` and the like by it.
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        // 32-bit registers and jumps; every kernel since 5.1 runs them.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // bpf-linker's default for memcpy makes every memset and memmove a call that moves single bytes: slower for the
        // packet and for the verifier, and one more frame on a stack of 512 bytes.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ];
    // Line information names files: without their machine's paths the object is the same wherever it is built.
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let remapped = [
        Some((workspace.to_owned(), "forwarder")),
        Some((out_dir.to_owned(), "out")),
        cargo_home.map(|home| (home.join("registry/src"), "registry")),
    ];
    for (from, to) in remapped.into_iter().flatten() {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    flags
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} is not set: build scripts run under cargo"))
}
