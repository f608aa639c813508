//! Debian's cloud kernels: chosen by apt, unpacked under `target/vm`, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::tools::{self, Tools};

/// A kernel series such as `6.1`; its packages are named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Series(pub(crate) &'static str);

/// An unpacked kernel with its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` says in the guest.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// The directory that becomes `/lib/modules/<release>`, with `modules.dep` made.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// Takes the kernel from `store/<series>` or, the first time, from Debian's archive.
    ///
    /// A kernel once unpacked stays: remove the directory to get a newer one.
    pub(crate) fn prepare(series: Series, store: &Path, tools: &Tools) -> Result<Self> {
        let home = store.join(series.0);
        if !home.exists() {
            fs::create_dir_all(store).with_context(|| format!("cannot create {}", store.display()))?;
            // Complete or absent: unpacked elsewhere on the same file system, then renamed.
            let staging = tempfile::Builder::new()
                .prefix("unpack-")
                .tempdir_in(store)
                .with_context(|| format!("cannot create a directory in {}", store.display()))?;
            unpack(series, staging.path(), tools)?;
            match fs::rename(staging.path(), &home) {
                Ok(()) => drop(staging.keep()),
                // Somebody else was quicker, with the same result.
                Err(_) if home.exists() => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot create {}", home.display()));
                }
            }
        }
        Self::open(&home)
            .with_context(|| format!("{} is not a complete kernel; remove it and try again", home.display()))
    }

    fn open(home: &Path) -> Result<Self> {
        let all = home.join("lib/modules");
        let release = fs::read_dir(&all)
            .with_context(|| format!("cannot read {}", all.display()))?
            .next()
            .context("no kernel modules")??
            .file_name()
            .into_string()
            .map_err(|name| anyhow!("strange release {}", name.display()))?;
        let image = home.join("vmlinuz");
        let modules = all.join(&release);
        for file in [&image, &modules.join("modules.dep")] {
            if !file.is_file() {
                bail!("{} is missing", file.display());
            }
        }
        Ok(Self { release, image, modules })
    }
}

/// Downloads the newest package of a series and lays out `vmlinuz` and `lib/modules` in `into`.
fn unpack(series: Series, into: &Path, tools: &Tools) -> Result<()> {
    let apt = into.join("apt");
    let tree = into.join("tree");
    fs::create_dir_all(&apt)?;
    let archive = download(series, &apt).or_else(|_| {
        // Package lists may be missing or older than the archive.
        tools::output(Path::new("apt-get"), ["update", "-qq"]).context("cannot refresh the package lists")?;
        download(series, &apt).with_context(|| {
            format!(
                "cannot get Debian's cloud kernel {0}; it comes from Debian 12 (bookworm, bookworm-security, \
                 bookworm-backports): see `apt-cache search linux-image-{0}`",
                series.0
            )
        })
    })?;
    tools::output(Path::new("dpkg-deb"), [Path::new("--extract"), &archive, &tree])?;

    // Packages since the usr-merge bring usr/lib.
    let lib = ["lib", "usr/lib"]
        .map(|name| tree.join(name))
        .into_iter()
        .find(|lib| lib.join("modules").is_dir())
        .context("the kernel package holds no modules")?;
    fs::rename(lib, into.join("lib"))?;
    let release = release_of(&archive, series)?;
    fs::rename(tree.join("boot").join(format!("vmlinuz-{release}")), into.join("vmlinuz"))
        .context("the kernel package holds no kernel")?;
    // Debian makes modules.dep when the package is installed, which this one never is.
    tools::output(&tools.depmod, [Path::new("-b"), into, Path::new(&release)])?;
    fs::remove_dir_all(apt)?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

fn download(series: Series, into: &Path) -> Result<PathBuf> {
    let pattern = format!("^linux-image-{}.*-cloud-amd64$", series.0.replace('.', "\\."));
    let names = tools::output(Path::new("apt-cache"), ["search", "--names-only", pattern.as_str()])?;
    let names = String::from_utf8_lossy(&names);
    let package = newest(names.lines().filter_map(|l| l.split_whitespace().next()), series)
        .with_context(|| format!("apt knows no cloud kernel {}", series.0))?;
    tools::checked(
        Command::new("apt-get")
            // apt's own user may not be able to write below the target directory.
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(into),
    )
    .with_context(|| format!("cannot download {package}"))?;
    fs::read_dir(into)?
        .next()
        .with_context(|| format!("apt-get download {package} left no file"))?
        .map(|entry| entry.path())
        .map_err(Into::into)
}

/// The release in the name of a kernel package, if it is a signed cloud kernel of this series.
fn release_in(package: &str, series: Series) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    let version = release.strip_suffix("-cloud-amd64")?;
    // The rest must start a new number: 6.1 is not 6.12. Without a rest it is a metapackage.
    version.strip_prefix(series.0)?.strip_prefix('.')?;
    (!version.contains("rc")).then_some(release)
}

fn release_of(archive: &Path, series: Series) -> Result<String> {
    archive
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split('_').next())
        // apt writes characters that file systems might refuse as %xx.
        .map(|package| package.replace("%2b", "+"))
        .and_then(|package| release_in(&package, series).map(str::to_owned))
        .with_context(|| format!("{} is not the package asked for", archive.display()))
}

/// The package of this series with the highest release.
fn newest<'a>(packages: impl IntoIterator<Item = &'a str>, series: Series) -> Option<&'a str> {
    packages.into_iter().filter(|package| release_in(package, series).is_some()).max_by_key(|package| numbers(package))
}

/// All numbers of a name, in order: compares 6.1.0-9 and 6.1.0-10 as people do.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
