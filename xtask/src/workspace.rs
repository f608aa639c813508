//! The workspace this xtask was built from, and cargo in it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The directory of the workspace's Cargo.toml.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The cargo that runs this xtask, started in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // Cargo describes the xtask package to us; a build script of a package built next must not take that for its own.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    cargo
}

/// Where cargo puts what it builds, unless a config file of the user says otherwise.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program of the machine: in the search path, or where administrators' tools are, which the path of an ordinary user
/// lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let searched = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&searched)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}
