//! What is loaded and changed: forwarder, nftables, iptables, each by its own command.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use forwarder_lab::{Family, Offloads, Topology};

use crate::forwarding::{self, Forwarder};
use crate::rules::{Rules, Source, iptables_restore};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Forwarder,
    Nftables,
    Iptables,
}

impl Tool {
    pub(super) const ALL: [Self; 3] = [Self::Forwarder, Self::Nftables, Self::Iptables];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Forwarder => "forwarder",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// The command that loads all rules at once.
    pub(super) const fn loads_by(self) -> &'static str {
        match self {
            Self::Forwarder => "forwarder load",
            Self::Nftables => "nft -f",
            Self::Iptables => "iptables-restore",
        }
    }

    /// The command that puts a file's rules in the place of those that are loaded.
    pub(super) const fn changes_by(self) -> &'static str {
        match self {
            Self::Forwarder => "forwarder reload",
            _ => self.loads_by(),
        }
    }
}

/// A network where a tool can do its work.
pub(super) struct Workplace {
    tool: Tool,
    forwarder: Forwarder,
    pub(super) net: Topology,
}

impl Workplace {
    pub(super) fn build(tool: Tool, binary: &Path) -> Result<Self> {
        let net = Topology::two_armed("bench", Offloads::Native)?;
        if tool != Tool::Forwarder {
            net.forwarder.enable_kernel_forwarding()?;
        }
        Ok(Self { tool, forwarder: Forwarder::prepare(&net, binary)?, net })
    }

    /// Masquerading rules for UDP: one that leads to [`Workplace::backend`], and others.
    pub(super) fn rules(&self, count: usize) -> Result<Rules> {
        let rules = Rules::new("udp", self.net.public(Family::V4, 8000), self.net.backend(Family::V4, 9000), 1, count);
        if self.tool == Tool::Forwarder {
            forwarding::own(&self.net, &rules)?;
        }
        Ok(rules)
    }

    /// A file of these rules, in the tool's own words, with these lines of forwarder's configuration first.
    pub(super) fn file(&self, name: &str, rules: &Rules, first: &str) -> Result<PathBuf> {
        let text = match self.tool {
            Tool::Forwarder => format!("{first}{}", rules.toml(Source::Masquerade)),
            Tool::Nftables => rules.nft(),
            Tool::Iptables => rules.iptables(),
        };
        forwarding::file(&self.net, &format!("{name}.{}", self.tool.name()), &text)
    }

    pub(super) fn load(&self, file: &Path) -> Result<Duration> {
        let begun = Instant::now();
        let path = file.to_string_lossy();
        match self.tool {
            Tool::Forwarder => {
                self.forwarder
                    .command(&["load", "--iface", "eth0", "--iface", "eth1", "--mode", "native", "--config", &path])?;
            }
            Tool::Nftables => drop(self.net.forwarder.run(&["nft", "-f", &path])?),
            Tool::Iptables => drop(self.net.forwarder.run(&[iptables_restore(Family::V4), &path])?),
        }
        Ok(begun.elapsed())
    }

    /// Has a file's rules take the place of those that are loaded.
    pub(super) fn change(&self, file: &Path) -> Result<Duration> {
        if self.tool != Tool::Forwarder {
            return self.load(file);
        }
        let begun = Instant::now();
        self.forwarder.command(&["reload", "--config", &file.to_string_lossy()])?;
        Ok(begun.elapsed())
    }

    /// Kernel memory of all of forwarder's maps and programs, in bytes.
    pub(super) fn memory(&self) -> Result<u64> {
        self.forwarder.memory()
    }

    pub(super) fn unload(&self) -> Result<()> {
        match self.tool {
            Tool::Forwarder => self.forwarder.command(&["unload"]).map(drop),
            Tool::Nftables => self.net.forwarder.run(&["nft", "flush", "ruleset"]).map(drop),
            Tool::Iptables => {
                let nothing = forwarding::file(&self.net, "nothing.iptables", "*nat\nCOMMIT\n")?;
                self.load(&nothing).map(drop)
            }
        }
        .context("cannot unload")
    }
}
