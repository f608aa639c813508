//! Command lines of QEMU and virtiofsd.

use std::{ffi::OsString, path::Path};

use super::cables::{CABLES, Cable};

/// How QEMU executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accelerator {
    /// Translated: works on every machine.
    Tcg,
    /// By the host's CPU, through /dev/kvm.
    Kvm,
}

/// A guest as QEMU sees it.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// Becomes the environment of the initramfs' init: names the guest's kernel does not know, without dots.
    pub(crate) parameters: &'a [(&'a str, &'a Path)],
    /// Where virtiofsd listens.
    pub(crate) fs_socket: &'a Path,
    /// File for what the kernel says.
    pub(crate) console: &'a Path,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) accelerator: Accelerator,
}

/// The virtio port whose output is QEMU's standard output; tests/vm/guest.sh looks for this name.
const RESULTS_PORT: &str = "results";

impl Machine<'_> {
    /// Arguments for `qemu-system-x86_64`. The results port needs an open standard input: while it is closed, the
    /// guest waits for a reader.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let accelerator = match self.accelerator {
            Accelerator::Tcg => "tcg,thread=multi",
            Accelerator::Kvm => "kvm",
        };
        let mut arguments: Vec<OsString> = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            // A panic ends QEMU instead of booting again.
            "-no-reboot",
            "-cpu",
            "max",
            "-accel",
            accelerator,
        ]
        .map(OsString::from)
        .to_vec();
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);

        add("-smp", self.cpus.to_string().into());
        add("-m", format!("{}M", self.memory_mib).into());
        // virtiofsd reads and writes the guest's memory itself.
        add("-object", format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib).into());
        add("-numa", "node,memdev=memory".into());

        add("-kernel", self.kernel.into());
        add("-initrd", self.initramfs.into());
        add("-append", self.command_line());

        add("-chardev", with_path("socket,id=fs,path=", self.fs_socket));
        add("-device", "vhost-user-fs-pci,chardev=fs,tag=host".into());
        add("-chardev", with_path("file,id=console,path=", self.console));
        add("-serial", "chardev:console".into());
        add("-chardev", "stdio,id=results,signal=off".into());
        add("-device", "virtio-serial-pci".into());
        add("-device", format!("virtserialport,chardev=results,name={RESULTS_PORT}").into());
        for nic in CABLES.iter().flat_map(Cable::nics) {
            add("-netdev", nic.netdev().into());
            add("-device", nic.device().into());
        }
        arguments
    }

    fn command_line(&self) -> OsString {
        // Warnings and worse on the console; an oops ends the guest at once instead of at the time limit.
        let mut line = OsString::from("console=ttyS0 loglevel=5 oops=panic panic=-1 mitigations=off");
        for (name, value) in self.parameters {
            line.push(format!(" {name}="));
            line.push(value);
        }
        line
    }
}

/// Arguments for virtiofsd, which takes its listening socket as standard input. QEMU's own daemon (Debian 12) and its
/// successor both know these.
pub(crate) fn virtiofsd_arguments() -> [&'static str; 7] {
    [
        "--fd=0",
        "-o",
        "source=/",
        // The host's files do not change while a guest runs, as far as the guest is concerned.
        "-o",
        "cache=always",
        // The default takes namespaces, which containers may not make.
        "-o",
        "sandbox=chroot",
    ]
}

/// QEMU splits options at commas and reads two as one.
fn with_path(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    match path.to_str() {
        Some(text) => argument.push(text.replace(',', ",,")),
        None => argument.push(path),
    }
    argument
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn machine() -> Machine<'static> {
        Machine {
            kernel: Path::new("/t/vmlinuz"),
            initramfs: Path::new("/t/initramfs"),
            parameters: &[],
            fs_socket: Path::new("/t/fs.sock"),
            console: Path::new("/t/console.log"),
            memory_mib: 512,
            cpus: 3,
            accelerator: Accelerator::Tcg,
        }
    }

    fn value_after(arguments: &[OsString], option: &str) -> Vec<String> {
        arguments
            .windows(2)
            .filter_map(|pair| match pair {
                [name, value] if name == option => Some(value.to_str().unwrap().to_owned()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn memory_is_said_twice_and_must_agree() {
        let arguments = machine().arguments();
        assert_eq!(value_after(&arguments, "-m"), ["512M"]);
        assert_eq!(value_after(&arguments, "-object"), ["memory-backend-memfd,id=memory,size=512M,share=on"]);
        assert_eq!(value_after(&arguments, "-smp"), ["3"]);
    }

    #[test]
    fn accelerators() {
        let mut machine = machine();
        assert_eq!(value_after(&machine.arguments(), "-accel"), ["tcg,thread=multi"]);
        machine.accelerator = Accelerator::Kvm;
        assert_eq!(value_after(&machine.arguments(), "-accel"), ["kvm"]);
    }

    #[test]
    fn every_chardev_has_one_user() {
        let arguments = machine().arguments();
        let chardevs = value_after(&arguments, "-chardev");
        assert_eq!(chardevs.len(), 3);
        let users: String = ["-device", "-serial"].iter().flat_map(|option| value_after(&arguments, option)).collect();
        for chardev in chardevs {
            let id = chardev.split("id=").nth(1).unwrap().split(',').next().unwrap();
            assert!(users.contains(&format!("chardev={id}")) || users.contains(&format!("chardev:{id}")), "{chardev}");
        }
    }

    #[test]
    fn parameters_reach_the_command_line() {
        let mut machine = machine();
        let parameters = [("VM_JOB", Path::new("/r/job")), ("VM_GUEST", Path::new("/g"))];
        machine.parameters = &parameters;
        let line = value_after(&machine.arguments(), "-append").remove(0);
        assert!(line.ends_with(" VM_JOB=/r/job VM_GUEST=/g"), "{line}");
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(with_path("path=", Path::new("/a,b")), "path=/a,,b");
    }
}
