//! What tests need of the kernel and the machine, asked of them.

use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use forwarder_lab::{Lab, LinkOptions};

use crate::virtio;

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    Bond,
    /// The NICs of the guests of `cargo xtask vm`.
    VirtioNics,
    Vlan,
    Vxlan,
    WireGuard,
}

/// Whether this is a guest that was made for these tests: then nothing is left out.
pub(crate) fn everything_is_to_be_there() -> bool {
    env::var_os("FORWARDER_GUEST").is_some()
}

impl Need {
    /// Why tests that need this cannot run here.
    pub(crate) fn lacking(self) -> Option<String> {
        static KNOWN: Mutex<BTreeMap<Need, Option<String>>> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(self).or_insert_with(|| self.find_out()).clone()
    }

    fn find_out(self) -> Option<String> {
        match self {
            Self::Bond => makes("type bond"),
            Self::VirtioNics => {
                (virtio::cables().is_empty()).then(|| "it needs the NICs of a guest: cargo xtask vm".to_owned())
            }
            Self::Vlan => makes("link eth0 type vlan id 1"),
            Self::Vxlan => makes("type vxlan id 1 dev eth0 dstport 4789"),
            Self::WireGuard => {
                let tools = Command::new("wg").arg("--version").output();
                let lacking = tools.err().map(|error| format!("wg cannot be run (wireguard-tools): {error}"));
                lacking.or_else(|| makes("type wireguard"))
            }
        }
    }
}

/// Why no such interface can be made, in the words of `ip`.
fn makes(what: &str) -> Option<String> {
    let probe = || {
        let lab = Lab::new("needs")?;
        let (here, there) = (lab.host("here")?, lab.host("there")?);
        lab.link(&here, "eth0", &there, "eth0", LinkOptions::default())?;
        let (link, kind) = what.split_at(what.find("type").unwrap_or(0));
        here.ip(&format!("link add {link} name probe {kind}")).map(drop)
    };
    probe().err().map(|error: anyhow::Error| format!("this kernel makes no interface of this kind: {error:#}"))
}
