//! `cargo xtask reproduce`: the BPF object is the same bytes wherever it is built.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    bpf_object::BpfPackage,
    progress::Step,
    setup::{self, Ready},
    workspace::{root, target_dir},
};

/// Build the BPF object here and in a copy of the sources, and compare the bytes
///
/// Both from nothing, with the same compiler and linker, in directories whose names differ in length. So whoever has
/// the sources and the compiler can tell whether a binary carries what they say.
#[derive(Args, Debug)]
pub(crate) struct Options {}

const PACKAGE: BpfPackage = BpfPackage { name: "forwarder-ebpf", arguments: &[], sources: &[] };

pub(crate) fn run(_: &Options) -> Result<()> {
    let ready = setup::ensure()?;
    let elsewhere =
        tempfile::Builder::new().prefix("forwarder-built-elsewhere").tempdir().context("cannot make a directory")?;
    let sources = elsewhere.path().join("sources");
    copy(root(), &sources)?;
    let here = build(&ready, root(), &target_dir().join("reproduce"))?;
    let there = build(&ready, &sources, &elsewhere.path().join("out"))?;
    let (here, there) = (read(&here)?, read(&there)?);
    if here != there {
        let first = here.iter().zip(&there).position(|(one, other)| one != other);
        bail!(
            "the BPF object depends on where it is built: {} and {} bytes, the first that differs is {first:?}",
            here.len(),
            there.len()
        );
    }
    println!("the BPF object has the same {} bytes wherever it is built ({})", here.len(), ready.toolchain.version);
    Ok(())
}

fn read(object: &Path) -> Result<Vec<u8>> {
    fs::read(object).with_context(|| format!("cannot read {}", object.display()))
}

/// Builds the object from the sources in `workspace` and nothing that was there before; returns where it is.
fn build(ready: &Ready, workspace: &Path, out: &Path) -> Result<PathBuf> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let step = Step::begin(format!("Building the BPF object in {}", workspace.display()));
    PACKAGE.compile(workspace, out, &ready.toolchain, &ready.linker)?;
    step.done();
    Ok(out.join(PACKAGE.name))
}

/// Copies a directory, without what was built in it and what is hidden.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let name = entry.file_name();
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        let (path, copied) = (entry.path(), to.join(&name));
        if path.is_dir() {
            copy(&path, &copied)?;
        } else {
            fs::copy(&path, &copied).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}
