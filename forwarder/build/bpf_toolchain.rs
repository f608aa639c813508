// Which Rust toolchain can compile for `bpfel-unknown-none`, and with which linker.
//
// Shared by `build.rs`, which needs an answer, and by `cargo xtask setup`, which makes sure there is one.
//
// No rustup channel ships a compiled `core` for BPF. Two ways around that are supported: the sources of `core` (rustup's
// `rust-src`), which cargo compiles along, and a toolchain that comes with a compiled `core` (Debian's
// `libstd-rust-web-dev-bpf`).

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The target every BPF object of this project is built for (little endian, as all machines it runs on).
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The oldest rustc that compiles this workspace, as (major, minor).
const OLDEST_RUSTC: (u32, u32) = (1, 88);

/// Names a rustup toolchain to use in place of the ones that are tried by default.
pub(crate) const TOOLCHAIN_VARIABLE: &str = "FORWARDER_BPF_TOOLCHAIN";

/// Where `core` for the BPF target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// Compiled, in the toolchain's own library directory.
    Prebuilt,
    /// Sources, to be compiled with `-Z build-std`.
    Sources,
}

/// A toolchain that can compile for BPF.
#[derive(Clone, Debug)]
pub(crate) struct BpfToolchain {
    /// For people: "rustup toolchain nightly", "/usr/bin/cargo".
    pub(crate) name: String,
    /// What `rustc --version` prints.
    pub(crate) version: String,
    pub(crate) core: Core,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    /// `rustup run NAME cargo`.
    Rustup(String),
    /// `cargo` and `rustc` of one directory.
    Directory(PathBuf),
    /// Whatever the search path has.
    SearchPath,
}

impl BpfToolchain {
    /// A program of this toolchain: "cargo", "cargo-clippy".
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut program = self.origin.command(name);
        if let Origin::Directory(directory) = &self.origin {
            program.env("RUSTC", directory.join("rustc")).env("CARGO", directory.join("cargo"));
        }
        program
    }

    /// The name rustup knows it by, if rustup does.
    #[allow(dead_code, reason = "the build script has no use for it")]
    pub(crate) fn rustup_name(&self) -> Option<&str> {
        match &self.origin {
            Origin::Rustup(name) => Some(name),
            Origin::Directory(_) | Origin::SearchPath => None,
        }
    }

    /// What RUSTC_BOOTSTRAP must be so that aya-ebpf (inline assembly for BPF) and our programs (atomic intrinsics) may
    /// use unstable features of a stable compiler. A list of crates leaves every other crate stable; compiling `core`
    /// needs the unrestricted form.
    pub(crate) fn bootstrap(&self) -> &'static str {
        match self.core {
            Core::Prebuilt => "aya_ebpf,forwarder_ebpf",
            Core::Sources => "1",
        }
    }

    /// Whether `linker` reads what this compiler writes: LLVM's bitcode is readable by the same or a later LLVM only, so
    /// a nightly can be too new for an installed bpf-linker. An empty program shows it in a tenth of a second.
    fn fits(&self, linker: &Path, scratch: &Path) -> bool {
        let source = scratch.join("probe.rs");
        let bitcode = scratch.join("probe.bc");
        let compiled = fs::write(&source, "#![feature(no_core)]\n#![no_core]\n").is_ok()
            && output(
                self.origin
                    .command("rustc")
                    .env("RUSTC_BOOTSTRAP", "1")
                    .args(["--crate-type=lib", "--emit=llvm-bc", "--target", TARGET])
                    .arg("-o")
                    .args([&bitcode, &source]),
            )
            .is_some();
        compiled && output(Command::new(linker).arg("-o").args([&scratch.join("probe.o"), &bitcode])).is_some()
    }
}

impl Origin {
    /// A program of this toolchain, free of what an outer cargo set for its own compiler.
    fn command(&self, program: &str) -> Command {
        let mut command = match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, program]);
                command
            }
            Self::Directory(directory) => Command::new(directory.join(program)),
            Self::SearchPath => Command::new(program),
        };
        for variable in [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
        ] {
            command.env_remove(variable);
        }
        command
    }

    fn name(&self) -> String {
        match self {
            Self::Rustup(name) => format!("rustup toolchain {name}"),
            Self::Directory(directory) => directory.join("cargo").display().to_string(),
            Self::SearchPath => "cargo of the search path".to_owned(),
        }
    }

    fn inspect(self) -> Option<BpfToolchain> {
        let version = output(self.command("rustc").arg("--version"))?;
        let mut numbers = version.split(' ').nth(1)?.split('.').map_while(|number| number.parse::<u32>().ok());
        if (numbers.next()?, numbers.next()?) < OLDEST_RUSTC {
            return None;
        }
        let sysroot = output(self.command("rustc").args(["--print", "sysroot"]))?;
        let rustlib = Path::new(&sysroot).join("lib/rustlib");
        let core = if has_compiled_core(&rustlib.join(TARGET).join("lib")) {
            Core::Prebuilt
        } else if rustlib.join("src/rust/library/Cargo.lock").is_file() {
            Core::Sources
        } else {
            return None;
        };
        // A rustc without its cargo is of no use.
        output(self.command("cargo").arg("--version"))?;
        Some(BpfToolchain { name: self.name(), version, core, origin: self })
    }
}

/// The first toolchain of this machine that can compile for BPF and whose output `linker` can read: a rustup nightly
/// with `rust-src`, then any other toolchain rustup knows, then Debian's in /usr/bin, then the search path's.
///
/// `scratch` is a directory to try it in.
pub(crate) fn find(linker: &Path, scratch: &Path) -> Option<BpfToolchain> {
    candidates().into_iter().filter_map(Origin::inspect).find(|toolchain| toolchain.fits(linker, scratch))
}

fn candidates() -> Vec<Origin> {
    if let Ok(name) = env::var(TOOLCHAIN_VARIABLE) {
        return vec![Origin::Rustup(name)];
    }
    let mut candidates = vec![];
    if let Some(list) = output(Command::new("rustup").args(["toolchain", "list", "--quiet"])) {
        let mut names: Vec<&str> = list.split_whitespace().collect();
        names.sort_by_key(|name| !name.starts_with("nightly"));
        candidates.extend(names.into_iter().map(|name| Origin::Rustup(name.to_owned())));
    }
    candidates.push(Origin::Directory(PathBuf::from("/usr/bin")));
    candidates.push(Origin::SearchPath);
    candidates
}

fn has_compiled_core(directory: &Path) -> bool {
    directory.read_dir().is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("libcore-") && Path::new(&name).extension() == Some(OsStr::new("rlib"))
        })
    })
}

/// bpf-linker: in the search path, or where `cargo install` puts programs (which Debian's cargo leaves out of it).
pub(crate) fn find_linker() -> Option<PathBuf> {
    let searched = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    env::split_paths(&searched)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|program| program.is_file())
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
