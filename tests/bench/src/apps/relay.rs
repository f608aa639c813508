//! The relays in user space that people use today: found on this machine, and started with an ordinary configuration.

use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use forwarder_lab::{Spawned, Topology};

use crate::forwarding;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relay {
    Haproxy,
    Nginx,
    Socat,
    Realm,
}

impl Relay {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Socat => "socat",
            Self::Realm => "realm",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Realm => "forwarder-bench-realm",
            _ => self.name(),
        }
    }

    /// What it says about its version.
    pub(super) fn version(self, peers: &Path) -> Option<String> {
        let option = match self {
            Self::Haproxy | Self::Nginx => "-v",
            Self::Socat => "-V",
            Self::Realm => "--version",
        };
        let output = command(self.find(peers)?, peers).arg(option).output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let line = said.lines().find(|line| line.chars().any(|letter| letter.is_ascii_digit()))?;
        let line = line.split(" - ").next().unwrap_or(line).split(" on ").next().unwrap_or(line);
        Some(line.trim_start_matches("nginx version: ").trim().to_owned())
    }

    /// Where it is: below `peers`, where `cargo xtask bench` puts what the machine lacks, or in the search path.
    pub(super) fn find(self, peers: &Path) -> Option<PathBuf> {
        let searched = env::var_os("PATH").unwrap_or_default();
        [peers.join("usr/sbin"), peers.join("usr/bin"), "/usr/sbin".into(), "/usr/bin".into()]
            .into_iter()
            .chain(env::split_paths(&searched))
            .map(|directory| directory.join(self.program()))
            .find(|program| program.is_file())
    }

    /// Starts it, from `listen` to `backend`.
    pub(super) fn start(
        self,
        net: &Topology,
        peers: &Path,
        listen: SocketAddr,
        backend: SocketAddr,
    ) -> Result<Spawned> {
        let program = self.find(peers).with_context(|| format!("there is no {}", self.program()))?;
        let mut command = net.forwarder.command(&program);
        command.envs(libraries(peers));
        match self {
            Self::Haproxy => {
                let file = forwarding::file(net, "haproxy", &haproxy(listen, backend))?;
                command.arg("-db").arg("-f").arg(file);
            }
            Self::Nginx => {
                let pid = env::temp_dir().join(format!("{}.nginx.pid", net.lab.id()));
                net.lab.delete_at_end(&pid)?;
                let file = forwarding::file(net, "nginx", &nginx(peers, &pid, listen, backend))?;
                command.args(["-e", "stderr", "-p", "/tmp/", "-c"]).arg(file);
            }
            Self::Socat => {
                // Its usual backlog of 5 would drop connections of the crowd, whose clients wait a second then.
                let from = format!("TCP-LISTEN:{},bind={},fork,reuseaddr,backlog=1024", listen.port(), listen.ip());
                command.arg(from).arg(format!("TCP:{backend}"));
            }
            Self::Realm => {
                command.arg(listen.to_string()).arg(backend.to_string());
            }
        }
        Spawned::start(command).with_context(|| format!("cannot start {}", self.name()))
    }
}

fn haproxy(listen: SocketAddr, backend: SocketAddr) -> String {
    format!(
        "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
         listen bench\n  bind {listen}\n  server home {backend}\n"
    )
}

fn nginx(peers: &Path, pid: &Path, listen: SocketAddr, backend: SocketAddr) -> String {
    // Debian has it as a module of its own.
    let module = [peers, Path::new("/")]
        .map(|root| root.join("usr/lib/nginx/modules/ngx_stream_module.so"))
        .into_iter()
        .find(|module| module.is_file())
        .map_or_else(String::new, |module| format!("load_module {};\n", module.display()));
    format!(
        "{module}daemon off;\npid {};\nworker_processes auto;\nevents {{ worker_connections 8192; }}\n\
         stream {{ server {{ listen {listen}; proxy_pass {backend}; }} }}\n",
        pid.display()
    )
}

/// A program that may need libraries from below `peers`.
fn command(program: PathBuf, peers: &Path) -> Command {
    let mut command = Command::new(program);
    command.envs(libraries(peers));
    command
}

fn libraries(peers: &Path) -> Option<(&'static str, OsString)> {
    let triple = format!("usr/lib/{}-linux-gnu", env::consts::ARCH);
    let directory = peers.join(triple);
    directory.is_dir().then(|| ("LD_LIBRARY_PATH", directory.into_os_string()))
}
