//! The relays that forwarder is compared with, where the machine lacks them: kept below `target`, since installing them would
//! start their services.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    progress::Step,
    workspace::{self, cargo, find_program, target_dir},
};

/// Programs and the Debian packages they come in; with nginx, the module that relays TCP.
const RELAYS: [(&str, &[&str]); 2] = [("haproxy", &["haproxy"]), ("nginx", &["nginx", "libnginx-mod-stream"])];
const REALM: &str = "forwarder-bench-realm";

/// Gets those that are missing. One that cannot be got is said and left out: the rest can be compared without it.
pub(super) fn ensure() -> PathBuf {
    let directory = target_dir().join("bench-peers");
    let root = directory.join("root");
    let attempts = [relays(&directory, &root), realm(&directory, &root)];
    for error in attempts.into_iter().filter_map(Result::err) {
        eprintln!("left out of the comparison: {error:#}");
    }
    root
}

/// Debian's packages, with what they depend on, unpacked but not installed.
fn relays(directory: &Path, root: &Path) -> Result<()> {
    let packages: Vec<&str> = RELAYS
        .iter()
        .filter(|(program, _)| find_program(program).is_none() && !root.join("usr/sbin").join(program).is_file())
        .flat_map(|(_, packages)| packages.iter().copied())
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    let archives = directory.join("archives");
    fs::create_dir_all(archives.join("partial")).with_context(|| format!("cannot make {}", archives.display()))?;
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    let step = Step::begin(format!("Fetching Debian packages to compare with: {}", packages.join(" ")));
    let download = || {
        let mut apt_get = Command::new("apt-get");
        apt_get.arg("-o").arg(format!("Dir::Cache::archives={}", archives.display()));
        apt_get.args(["install", "--download-only", "--yes", "--no-install-recommends"]).args(&packages);
        apt_get
    };
    if step.run(&mut download()).is_err() {
        step.run(Command::new("apt-get").arg("update"))?;
        step.run(&mut download())?;
    }
    for archive in fs::read_dir(&archives).context("cannot list the packages")?.flatten().map(|entry| entry.path()) {
        if archive.extension().is_some_and(|extension| extension == "deb") {
            step.run(Command::new("dpkg").arg("--extract").arg(&archive).arg(root))?;
        }
    }
    step.done();
    Ok(())
}

/// realm's core as a program, from crates.io.
fn realm(directory: &Path, root: &Path) -> Result<()> {
    let programs = root.join("usr/bin");
    let program = programs.join(REALM);
    if program.is_file() {
        return Ok(());
    }
    let step = Step::begin("Building realm's relay to compare with");
    let target = directory.join("realm");
    step.run(
        cargo()
            .args(["build", "--release", "--locked", "--manifest-path"])
            .arg(workspace::root().join("tests/bench/realm/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target),
    )?;
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    fs::copy(target.join("release").join(REALM), &program).context("cannot copy realm's relay")?;
    step.done();
    Ok(())
}
