//! The programs a guest needs on the host, looked up before anything else happens.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::workspace::find_program;

/// Where Debian keeps virtiofsd: QEMU's own until Debian 12, its successor since.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// Programs found on this machine.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) qemu: PathBuf,
    pub(crate) virtiofsd: PathBuf,
    /// Statically linked: it is all the initramfs has.
    pub(crate) busybox: PathBuf,
    pub(crate) setpriv: PathBuf,
    pub(crate) unshare: PathBuf,
    pub(crate) depmod: PathBuf,
}

/// Whether this machine and user can have guests at all.
pub(crate) fn check_host() -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!(
            "the guest shares the host's programs, so `cargo xtask vm` needs an x86-64 host (this one is {})",
            env::consts::ARCH
        );
    }
    if !geteuid().is_root() {
        bail!(
            "`cargo xtask vm` shares the whole file system with the guest, which takes root; from a user's shell: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask vm"
        );
    }
    Ok(())
}

impl Tools {
    /// Finds them all, or names every missing one together with the command that installs them.
    pub(crate) fn find() -> Result<Self> {
        let mut missing = Vec::new();
        let mut need = |found: Option<PathBuf>, name: &str| {
            found.unwrap_or_else(|| {
                missing.push(name.to_owned());
                PathBuf::new()
            })
        };
        let tools = Self {
            qemu: need(find_program("qemu-system-x86_64"), "qemu-system-x86_64"),
            virtiofsd: need(
                VIRTIOFSD.iter().map(PathBuf::from).find(|path| path.is_file()).or_else(|| find_program("virtiofsd")),
                "virtiofsd",
            ),
            busybox: need(find_program("busybox").filter(|path| is_static(path)), "busybox (statically linked)"),
            setpriv: need(find_program("setpriv"), "setpriv"),
            unshare: need(find_program("unshare"), "unshare"),
            depmod: need(find_program("depmod"), "depmod"),
        };
        if !missing.is_empty() {
            bail!(
                "{} not installed; run this once: cargo xtask setup --dev\n(Debian's packages: qemu-system-x86 \
                 qemu-system-common busybox-static kmod util-linux; virtiofsd from Debian 13 on)",
                missing.join(", ")
            );
        }
        Ok(tools)
    }
}

/// Whether an executable names no dynamic loader.
fn is_static(program: &Path) -> bool {
    const LOADER: &[u8] = b"/ld-linux";
    fs::read(program).is_ok_and(|bytes| !bytes.windows(LOADER.len()).any(|window| window == LOADER))
}

/// Runs a program to its end and returns what it printed; its error text becomes the error.
pub(crate) fn output<I, S>(program: &Path, arguments: I) -> Result<Vec<u8>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    checked(&mut command)
}

/// Like [`output`], for a command that needs more than arguments.
pub(crate) fn checked(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status}): {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(stdout)
}
