//! What is measured.

use std::fmt;

use forwarder_lab::Family;

/// How packets get from the client's side to the backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A bare XDP redirect that touches nothing: no forwarder can be faster here.
    Limit,
    /// The same with `bpf_redirect`, which names the interface by its number.
    RedirectByIndex,
    /// The kernel routes; addresses stay.
    Kernel,
    /// The kernel routes, nftables translates destination and source.
    Nftables,
    /// forwarder, with the client's address kept (stateless) or masqueraded.
    Forwarder { hook: Hook, masquerade: bool },
}

/// Which of forwarder's hooks does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// One line of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) family: Family,
    pub(crate) way: Way,
    /// A power of two.
    pub(crate) flows: u32,
    /// Which forwarder: 0 is the one that is measured, 1 the first one to compare it with, and so on.
    pub(crate) binary: usize,
}

const FEW: u32 = 1 << 10;
const MANY: u32 = 1 << 16;

const fn forwarder(hook: Hook, masquerade: bool) -> Way {
    Way::Forwarder { hook, masquerade }
}

/// Besides the limit, which is measured with each of them.
const WAYS: [(Way, u32); 11] = [
    (Way::RedirectByIndex, FEW),
    (Way::Kernel, FEW),
    (Way::Nftables, FEW),
    (Way::Nftables, MANY),
    (forwarder(Hook::Xdp, false), FEW),
    (forwarder(Hook::Xdp, false), MANY),
    (forwarder(Hook::Xdp, true), FEW),
    (forwarder(Hook::Xdp, true), MANY),
    (forwarder(Hook::Tc, false), FEW),
    (forwarder(Hook::Tc, true), FEW),
    (forwarder(Hook::Tc, true), MANY),
];

/// The rows whose name contains one of `words`, or all; without the limits.
pub(crate) fn matching(words: &[String]) -> Vec<Row> {
    let rows = Family::ALL
        .into_iter()
        .flat_map(|family| WAYS.into_iter().map(move |(way, flows)| Row { family, way, flows, binary: 0 }));
    rows.filter(|row| {
        let name = row.to_string();
        words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
    })
    .collect()
}

impl Row {
    /// The limit of an address family.
    pub(crate) const fn limit(family: Family) -> Self {
        Self { family, way: Way::Limit, flows: FEW, binary: 0 }
    }

    /// The same, for each of so many forwarders where one is in it.
    pub(crate) fn with_binaries(self, binaries: usize) -> impl Iterator<Item = Self> {
        let last = if matches!(self.way, Way::Forwarder { .. }) { binaries.saturating_sub(1) } else { 0 };
        (0..=last).map(move |binary| Self { binary, ..self })
    }

    /// Whether the packets' flows must have been seen both ways before they are measured.
    pub(crate) const fn has_flows(self) -> bool {
        match self.way {
            Way::Limit | Way::RedirectByIndex | Way::Kernel => false,
            Way::Nftables => true,
            Way::Forwarder { masquerade, .. } => masquerade,
        }
    }

    /// Whether the backend sees an address of the forwarder in place of the client's.
    pub(crate) const fn masquerades(self) -> bool {
        self.has_flows()
    }

    /// Whether the destination is an address of the forwarder.
    pub(crate) const fn translates(self) -> bool {
        matches!(self.way, Way::Nftables | Way::Forwarder { .. })
    }

    /// Whether frames arrive as they were sent.
    pub(crate) const fn is_bare(self) -> bool {
        matches!(self.way, Way::Limit | Way::RedirectByIndex)
    }

    /// For people.
    pub(crate) fn description(self) -> &'static str {
        match self.way {
            Way::Limit => "bare XDP redirect (devmap): the limit",
            Way::RedirectByIndex => "bare XDP redirect, by interface number",
            Way::Kernel => "kernel forwarding, no NAT",
            Way::Nftables => "nftables DNAT + masquerade",
            Way::Forwarder { hook: Hook::Xdp, masquerade: false } => "forwarder XDP, preserve (stateless)",
            Way::Forwarder { hook: Hook::Xdp, masquerade: true } => "forwarder XDP, masquerade",
            Way::Forwarder { hook: Hook::Tc, masquerade: false } => "forwarder TC, preserve (stateless)",
            Way::Forwarder { hook: Hook::Tc, masquerade: true } => "forwarder TC, masquerade",
        }
    }
}

/// The name to filter by: family/way/flows, and which of several forwarders.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = family_name(self.family);
        let way = match self.way {
            Way::Limit => return write!(f, "{family}/limit"),
            Way::RedirectByIndex => return write!(f, "{family}/redirect-by-index"),
            Way::Kernel => return write!(f, "{family}/kernel"),
            Way::Nftables => "nftables",
            Way::Forwarder { hook: Hook::Xdp, masquerade: false } => "xdp/preserve",
            Way::Forwarder { hook: Hook::Xdp, masquerade: true } => "xdp/masquerade",
            Way::Forwarder { hook: Hook::Tc, masquerade: false } => "tc/preserve",
            Way::Forwarder { hook: Hook::Tc, masquerade: true } => "tc/masquerade",
        };
        write!(f, "{family}/{way}/{}k", self.flows / 1024)?;
        if self.binary == 0 { Ok(()) } else { write!(f, "/beside-{}", self.binary) }
    }
}

pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}
