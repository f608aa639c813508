//! The initramfs: busybox, tests/vm/init and the modules that lead to the host's root.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    kernel::Kernel,
    tools::{self, Tools},
};

/// Modules the guest needs before it has the host's root; everything else loads on demand from there.
const NEEDED: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];

/// Writes an initramfs for this kernel to `file`.
pub(crate) fn write(file: &Path, kernel: &Kernel, init: &Path, tools: &Tools) -> Result<()> {
    let tree = tempfile::tempdir().context("cannot create a temporary directory")?;
    let root = tree.path();
    for directory in ["bin", "proc", "sys", "dev", "modules"] {
        fs::create_dir(root.join(directory))?;
    }
    fs::copy(&tools.busybox, root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh"))?;
    fs::copy(init, root.join("init")).with_context(|| format!("cannot read {}", init.display()))?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;

    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let dependencies = read("modules.dep")?;
    let modules = load_order(&dependencies, &read("modules.builtin")?, &NEEDED)?;
    let mut order = File::create(root.join("modules/order"))?;
    for path in modules {
        let name = format!("{}.ko", module_name(path));
        let packed = kernel.modules.join(path);
        fs::write(root.join("modules").join(&name), unpacked(&packed, tools)?)?;
        writeln!(order, "{name}")?;
    }
    archive(root, file, tools)
}

/// Packs a directory in the format the kernel reads (uncompressed: it is a few MB and read once).
fn archive(root: &Path, file: &Path, tools: &Tools) -> Result<()> {
    let list = tools::checked(Command::new("find").arg(".").current_dir(root))?;
    let mut cpio = Command::new(&tools.busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(File::create(file)?)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run busybox cpio")?;
    let fed = cpio.stdin.take().context("busybox cpio has no input")?.write_all(&list);
    let status = cpio.wait()?;
    fed.context("busybox cpio stopped reading")?;
    if !status.success() {
        bail!("busybox cpio failed ({status})");
    }
    Ok(())
}

/// A module's contents; kernels since Debian 13 ship them compressed.
fn unpacked(module: &Path, tools: &Tools) -> Result<Vec<u8>> {
    let extension = module.extension().unwrap_or_default();
    match extension.to_str() {
        Some("ko") => fs::read(module).with_context(|| format!("cannot read {}", module.display())),
        Some("xz") => tools::output(&tools.busybox, [Path::new("xz"), Path::new("-dc"), module]),
        Some("gz") => tools::output(&tools.busybox, [Path::new("gzip"), Path::new("-dc"), module]),
        Some("zst") => tools::output(Path::new("zstd"), [Path::new("-qdc"), module])
            .context("this kernel's modules are compressed with zstd (Debian's package: zstd)"),
        _ => bail!("{} is compressed in an unknown way", module.display()),
    }
}

/// Paths of the wanted modules and all they depend on, each after its dependencies.
///
/// `dep` is `modules.dep`: per line a module and, after the colon, everything it needs, the deepest last. What is in
/// `builtin` is part of the kernel image and needs no loading.
fn load_order<'a>(dep: &'a str, builtin: &str, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for &module in wanted {
        let line = dep.lines().filter_map(|line| line.split_once(':')).find(|(path, _)| module_name(path) == module);
        let Some((path, needs)) = line else {
            if builtin.lines().any(|path| module_name(path) == module) {
                continue;
            }
            bail!("this kernel has no module {module}");
        };
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/fuse/virtio-fs.ko.xz` is the module `virtio_fs`: the kernel does not tell `-` from `_`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::{load_order, module_name};

    #[test]
    fn names() {
        assert_eq!(module_name("kernel/fs/fuse/virtiofs.ko"), "virtiofs");
        assert_eq!(module_name("kernel/a/crc32c-intel.ko.xz"), "crc32c_intel");
        assert_eq!(module_name("overlay.ko.zst"), "overlay");
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dep = "kernel/v/virtio_pci.ko: kernel/v/virtio_pci_modern_dev.ko kernel/v/virtio.ko kernel/v/virtio_ring.ko\n\
                   kernel/v/virtio_ring.ko:\n\
                   kernel/fs/virtiofs.ko.xz: kernel/fs/fuse.ko.xz kernel/v/virtio.ko kernel/v/virtio_ring.ko\n";
        let builtin = "kernel/fs/overlayfs/overlay.ko\n";
        assert_eq!(
            load_order(dep, builtin, &["virtio_pci", "virtiofs", "overlay"]).unwrap(),
            [
                "kernel/v/virtio_ring.ko",
                "kernel/v/virtio.ko",
                "kernel/v/virtio_pci_modern_dev.ko",
                "kernel/v/virtio_pci.ko",
                "kernel/fs/fuse.ko.xz",
                "kernel/fs/virtiofs.ko.xz",
            ]
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let error = load_order("", "", &["virtiofs"]).unwrap_err();
        assert!(error.to_string().contains("virtiofs"), "{error}");
    }
}
