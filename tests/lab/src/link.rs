//! veth pairs.

use anyhow::Result;

use crate::host::Host;

/// What the two ends of a link leave to the other side to finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloads {
    /// As the kernel makes them: partial checksums and packets of up to 64 kB cross the link. Native XDP breaks on these.
    #[default]
    Default,
    /// As on a wire: full checksums, packets no longer than the MTU. Both ends have GRO, without which a veth drops,
    /// silently, what a native XDP program at its peer redirects into it.
    Native,
}

/// Properties of a link; [`Default`] is what the kernel does by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkOptions {
    /// In bytes, of both ends; `None` is the kernel's 1500.
    pub mtu: Option<u16>,
    /// Of both ends.
    pub offloads: Offloads,
}

impl From<Offloads> for LinkOptions {
    fn from(offloads: Offloads) -> Self {
        Self { offloads, ..Self::default() }
    }
}

pub(crate) fn create((a, a_name): (&Host, &str), (b, b_name): (&Host, &str), options: LinkOptions) -> Result<()> {
    let mtu = options.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    a.ip(&format!(
        "link add {a_name} address {}{mtu} type veth peer name {b_name} address {}{mtu} netns {}",
        a.next_mac(),
        b.next_mac(),
        b.netns(),
    ))?;
    for (host, name) in [(a, a_name), (b, b_name)] {
        if options.offloads == Offloads::Native {
            host.features(name, "tx off gro on")?;
        }
        host.ip(&format!("link set {name} up"))?;
    }
    Ok(())
}
