//! What a row of packet rates is: a way, an address family, and what varies.

use std::fmt;

use forwarder_lab::Family;

/// How packets get from the client's side to the backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A bare XDP redirect that touches nothing: no forwarder can be faster here.
    Limit,
    /// The same with `bpf_redirect`, which names the interface by its number.
    RedirectByIndex,
    /// XDP asks the kernel for the route of each packet, and translates nothing.
    FibLookup,
    /// The kernel routes; addresses stay.
    Kernel,
    /// The kernel routes, nftables translates destination and source.
    Nftables,
    /// The same by iptables.
    Iptables,
    /// forwarder.
    Forwarder { hook: Hook, mode: Mode },
}

/// Which of forwarder's hooks does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// What forwarder's rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The client's address stays; no flows.
    Preserve,
    /// The client's address stays, and flows are kept all the same.
    PreserveFlows,
    /// The backend sees an address of the forwarder.
    Masquerade,
    /// A prefix one to one onto another (NETMAP, NPTv6); no flows.
    Prefix,
}

/// Size of frames on the wire, with their check sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// 64 bytes; IPv6, whose headers and a flow's number need more, 70.
    Least,
    /// 512 bytes.
    Middle,
    /// IP packets of 1500 bytes, the usual MTU: 1518 on the wire.
    Full,
}

/// One line of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) family: Family,
    pub(crate) way: Way,
    /// A power of two.
    pub(crate) flows: u32,
    /// Whether each packet is the first of a new flow.
    pub(crate) fresh: bool,
    pub(crate) size: Size,
    /// How many rules there are, if that is what the row is about.
    pub(crate) rules: Option<u32>,
    /// Which forwarder: 0 is the one that is measured, 1 the first one to compare it with, and so on.
    pub(crate) binary: usize,
}

/// Rules where their number is not what a row is about.
const USUAL_RULES: u32 = 16;
/// Rules for more flows than one address has ports for, at [`USUAL_RULES`] backends.
const RULES_OF_MANY_FLOWS: u32 = 64;
const MANY_FLOWS: u32 = 1 << 18;
/// Packets go to at most so many of the rules: what a busy machine has in use at a time.
const MOST_LISTENS: u32 = 1 << 10;

impl Row {
    /// The usual: packets of 64 bytes, few rules.
    pub(crate) const fn new(family: Family, way: Way, flows: u32) -> Self {
        Self { family, way, flows, fresh: false, size: Size::Least, rules: None, binary: 0 }
    }

    /// Each packet of a flow of its own.
    pub(crate) const fn fresh(family: Family, way: Way) -> Self {
        Self { fresh: true, ..Self::new(family, way, 1 << 22) }
    }

    /// With frames of another size.
    pub(crate) const fn size(self, size: Size) -> Self {
        Self { size, ..self }
    }

    /// With so many rules.
    pub(crate) const fn rules(self, rules: u32) -> Self {
        Self { rules: Some(rules), ..self }
    }

    /// The same, for each of so many forwarders where one is in it.
    pub(crate) fn with_binaries(self, binaries: usize) -> impl Iterator<Item = Self> {
        let last = if matches!(self.way, Way::Forwarder { .. }) { binaries.saturating_sub(1) } else { 0 };
        (0..=last).map(move |binary| Self { binary, ..self })
    }

    /// The limit that this row is measured against.
    pub(crate) const fn limit(self) -> Self {
        Self { size: self.size, ..Self::new(self.family, Way::Limit, 1 << 10) }
    }

    /// How many rules there are.
    pub(crate) const fn rule_count(self) -> u32 {
        match self.rules {
            Some(rules) => rules,
            None if self.flows > MANY_FLOWS && !self.fresh => RULES_OF_MANY_FLOWS,
            None => USUAL_RULES,
        }
    }

    /// How many of them packets go to: 2 to the power of this.
    pub(crate) const fn listen_bits(self) -> u32 {
        let rules = self.rule_count();
        (if rules > MOST_LISTENS { MOST_LISTENS } else { rules }).ilog2()
    }

    /// Whether the packets' flows must have been seen both ways before they are measured.
    pub(crate) const fn has_flows(self) -> bool {
        !self.fresh
            && matches!(
                self.way,
                Way::Nftables | Way::Iptables | Way::Forwarder { mode: Mode::Masquerade | Mode::PreserveFlows, .. }
            )
    }

    /// Whether the backend sees an address of the forwarder in place of the client's.
    pub(crate) const fn masquerades(self) -> bool {
        matches!(self.way, Way::Nftables | Way::Iptables | Way::Forwarder { mode: Mode::Masquerade, .. })
    }

    /// Whether the destination is an address of the forwarder, or one that it translates.
    pub(crate) const fn translates(self) -> bool {
        matches!(self.way, Way::Nftables | Way::Iptables | Way::Forwarder { .. })
    }

    /// Whether the destination's port changes.
    pub(crate) const fn translates_ports(self) -> bool {
        self.translates() && !matches!(self.way, Way::Forwarder { mode: Mode::Prefix, .. })
    }

    /// Whether frames arrive as they were sent.
    pub(crate) const fn is_bare(self) -> bool {
        matches!(self.way, Way::Limit | Way::RedirectByIndex)
    }

    /// For people.
    pub(crate) const fn description(self) -> &'static str {
        match self.way {
            Way::Limit => "bare XDP redirect (devmap): the limit",
            Way::RedirectByIndex => "bare XDP redirect, by interface number",
            Way::FibLookup => "XDP redirect with a route look-up, no NAT",
            Way::Kernel => "kernel forwarding, no NAT",
            Way::Nftables => "nftables DNAT + masquerade",
            Way::Iptables => "iptables DNAT + masquerade",
            Way::Forwarder { hook: Hook::Xdp, mode } => match mode {
                Mode::Preserve => "forwarder XDP, preserve (stateless)",
                Mode::PreserveFlows => "forwarder XDP, preserve (flows)",
                Mode::Masquerade => "forwarder XDP, masquerade",
                Mode::Prefix => "forwarder XDP, prefix (one to one)",
            },
            Way::Forwarder { hook: Hook::Tc, mode } => match mode {
                Mode::Preserve => "forwarder TC, preserve (stateless)",
                Mode::PreserveFlows => "forwarder TC, preserve (flows)",
                Mode::Masquerade => "forwarder TC, masquerade",
                Mode::Prefix => "forwarder TC, prefix (one to one)",
            },
        }
    }

    /// How many flows, and whatever else is not usual, for people.
    pub(crate) fn conditions(self) -> String {
        let mut parts = vec![match self.way {
            _ if self.fresh => "new flows only".to_owned(),
            Way::Limit | Way::RedirectByIndex => String::new(),
            _ => format!("{} flow{}", count(self.flows), if self.flows == 1 { "" } else { "s" }),
        }];
        parts.extend(self.size.bytes().map(|bytes| format!("{bytes} bytes")));
        parts.extend(self.rules.map(|rules| format!("{} rule{}", count(rules), if rules == 1 { "" } else { "s" })));
        if self.binary > 0 {
            parts.push(format!("beside-{}", self.binary));
        }
        parts.retain(|part| !part.is_empty());
        parts.join(", ")
    }
}

/// The name to filter by: family/way/flows, whatever else is not usual, and which of several forwarders.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Limit => "limit",
            Way::RedirectByIndex => "redirect-by-index",
            Way::FibLookup => "redirect-fib-lookup",
            Way::Kernel => "kernel",
            Way::Nftables => "nftables",
            Way::Iptables => "iptables",
            Way::Forwarder { hook: Hook::Xdp, mode } => match mode {
                Mode::Preserve => "xdp/preserve",
                Mode::PreserveFlows => "xdp/preserve-flows",
                Mode::Masquerade => "xdp/masquerade",
                Mode::Prefix => "xdp/prefix",
            },
            Way::Forwarder { hook: Hook::Tc, mode } => match mode {
                Mode::Preserve => "tc/preserve",
                Mode::PreserveFlows => "tc/preserve-flows",
                Mode::Masquerade => "tc/masquerade",
                Mode::Prefix => "tc/prefix",
            },
        };
        write!(f, "{}/{way}", family_name(self.family))?;
        match self.way {
            _ if self.fresh => f.write_str("/new")?,
            Way::Limit | Way::RedirectByIndex | Way::FibLookup | Way::Kernel => {}
            _ => write!(f, "/{}", count(self.flows))?,
        }
        if let Some(bytes) = self.size.bytes() {
            write!(f, "/{bytes}B")?;
        }
        match self.rules {
            Some(1) => f.write_str("/1-rule")?,
            Some(rules) => write!(f, "/{}-rules", count(rules))?,
            None => {}
        }
        if self.binary == 0 { Ok(()) } else { write!(f, "/beside-{}", self.binary) }
    }
}

impl Size {
    /// What it is called after, if it is not the usual one.
    const fn bytes(self) -> Option<u32> {
        match self {
            Self::Least => None,
            Self::Middle => Some(512),
            Self::Full => Some(1500),
        }
    }
}

/// A count as short as people say it: 1 k is 1000 of rules, which are counted by people, and 1024 of flows.
pub(crate) fn count(number: u32) -> String {
    match number {
        _ if number >= 1 << 20 && number.is_multiple_of(1 << 20) => format!("{}M", number >> 20),
        _ if number >= 1 << 10 && number.is_multiple_of(1 << 10) => format!("{}k", number >> 10),
        _ if number >= 1000 && number.is_multiple_of(1000) => format!("{}k", number / 1000),
        _ => number.to_string(),
    }
}

pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}
