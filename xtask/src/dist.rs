//! `cargo xtask dist`: the binary people install.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;
use clap::Args;

use crate::{setup, workspace};

/// Build one self-contained `forwarder` binary for other machines
///
/// The result is target/dist/forwarder with the BPF programs inside, and its checksum beside it: machines that run it
/// need neither Rust nor LLVM. Statically linked (musl) where the Rust toolchain has that target, so that it runs on any
/// distribution; otherwise it needs a glibc at least as new as this machine's.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Build for this Rust target in place of the one picked for this machine
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    let target = options.target.clone().or_else(installed_musl);
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--locked", "--package", "forwarder"]);
    cargo.arg("--message-format=json-render-diagnostics");
    if let Some(target) = &target {
        cargo.args(["--target", target]);
    }
    let built = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !built.status.success() {
        bail!("building the release binary failed; cargo's messages are above");
    }
    let artifacts = Artifacts::read(&built.stdout)?;

    let directory = workspace::target_dir().join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let binary = directory.join("forwarder");
    fs::copy(&artifacts.binary, &binary).with_context(|| format!("cannot write {}", binary.display()))?;
    let checksum = sha256(&binary)?;
    let checksum_file = directory.join("forwarder.sha256");
    fs::write(&checksum_file, format!("{checksum}  forwarder\n"))
        .with_context(|| format!("cannot write {}", checksum_file.display()))?;

    let megabytes = fs::metadata(&binary)?.len() / 100_000;
    println!("{} ({}.{} MB)", binary.display(), megabytes / 10, megabytes % 10);
    println!("sha256      {checksum}");
    println!("BPF object  sha256 {}", sha256(&artifacts.bpf_object)?);
    match target {
        Some(target) if target.contains("musl") => {
            println!("Static ({target}): runs on any Linux of this architecture.");
        }
        Some(target) => println!("Built for {target}."),
        None => println!(
            "Dynamic: needs a glibc at least as new as this machine's. For a static binary add the musl target \
             (rustup target add {}-unknown-linux-musl).",
            std::env::consts::ARCH
        ),
    }
    Ok(())
}

/// What cargo says it made.
struct Artifacts {
    binary: PathBuf,
    bpf_object: PathBuf,
}

impl Artifacts {
    fn read(messages: &[u8]) -> Result<Self> {
        let mut binary = None;
        let mut bpf_object = None;
        for message in Message::parse_stream(messages) {
            match message.context("cannot read cargo's messages")? {
                Message::CompilerArtifact(artifact) if artifact.target.name == "forwarder" => {
                    binary = artifact.executable.map(PathBuf::from).or(binary);
                }
                Message::BuildScriptExecuted(script) => {
                    let object = script.out_dir.join("forwarder-ebpf");
                    if object.is_file() {
                        bpf_object = Some(PathBuf::from(object));
                    }
                }
                _ => {}
            }
        }
        Ok(Self {
            binary: binary.context("cargo built no binary called forwarder")?,
            bpf_object: bpf_object.context("cargo built no BPF object")?,
        })
    }
}

/// The musl target of this architecture, if its standard library is installed.
fn installed_musl() -> Option<String> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let output = Command::new("rustc")
        .current_dir(workspace::root())
        .args(["--print", "target-libdir", "--target", &target])
        .output()
        .ok()?;
    let directory = String::from_utf8(output.stdout).ok()?;
    Path::new(directory.trim()).is_dir().then_some(target)
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg("--").arg(file).output().context("cannot start sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        Some(sum) if output.status.success() => Ok(sum.to_owned()),
        _ => bail!("sha256sum cannot read {}", file.display()),
    }
}
