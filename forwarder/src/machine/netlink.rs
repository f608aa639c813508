//! What the kernel says about interfaces, addresses, routes and rules, asked over rtnetlink.
//!
//! Never from `/sys/class/net`: that shows the network namespace `/sys` was mounted in, not the one we are in.

mod clsact;
mod fallback;
mod neighbours;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
        rule::{RuleAttribute, RuleMessage},
    },
};

use super::{Interface, Kernel, Machine, sysctl};
pub use clsact::remove_unused_clsact;
pub use fallback::{FallbackRoute, remove_fallback_route};
pub use neighbours::Neighbour;

/// An interface as far as attaching to it is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What rules and routes need to know.
    pub interface: Interface,
    /// What made it, for interfaces that are not hardware: `veth`, `bridge`, `wireguard`, `tun`.
    pub kind: Option<String>,
    /// The id of the XDP program attached to it, whoever attached it.
    pub xdp_program: Option<u32>,
    /// Queues for receiving; the interface of a bond or a bridge has one.
    pub receive_queues: u32,
}

/// A connection to rtnetlink in the network namespace of the calling process.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a connection; it is served by a task of the running tokio runtime.
    pub fn connect() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket to the kernel's routing")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All interfaces of the network namespace with their addresses, ordered by index.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let mut links: Vec<Link> = self
            .handle
            .link()
            .get()
            .execute()
            .map_ok(|message| link(&message))
            .try_collect()
            .await
            .context("cannot list the network interfaces over netlink")?;
        let addresses = self.handle.address().get().execute().try_collect();
        let mut addresses: Vec<AddressMessage> =
            addresses.await.context("cannot list the addresses of the interfaces over netlink")?;
        addresses.sort_by_key(|message| for_special_use(&message.attributes));
        for message in addresses {
            let index = message.header.index;
            let address = local_address(&message.attributes)
                .and_then(|address| IpNet::new(address, message.header.prefix_len).ok());
            let link = links.iter_mut().find(|link| link.interface.index == index);
            if let (Some(address), Some(link)) = (address, link) {
                link.interface.addresses.push(address);
            }
        }
        links.sort_by_key(|link| link.interface.index);
        Ok(links)
    }

    /// All that the kernel would have told of interfaces, addresses and neighbours if one had listened from the start.
    pub async fn history(&self) -> Result<Vec<RouteNetlinkMessage>> {
        let failed = "cannot list interfaces, addresses and neighbours over netlink";
        let links = self.handle.link().get().execute().map_ok(RouteNetlinkMessage::NewLink);
        let mut messages: Vec<_> = links.try_collect().await.context(failed)?;
        let addresses = self.handle.address().get().execute().map_ok(RouteNetlinkMessage::NewAddress);
        messages.extend(addresses.try_collect::<Vec<_>>().await.context(failed)?);
        let neighbours = self.handle.neighbours().get().execute().map_ok(RouteNetlinkMessage::NewNeighbour);
        messages.extend(neighbours.try_collect::<Vec<_>>().await.context(failed)?);
        Ok(messages)
    }

    /// The machine as rules see it, and its interfaces as attaching sees them; `backends` are what the routing is
    /// asked about.
    pub async fn machine(&self, backends: &BTreeSet<IpAddr>) -> Result<(Machine, Vec<Link>)> {
        let links = self.links().await?;
        let (mut sources, mut ways) = (BTreeMap::new(), BTreeMap::new());
        for backend in backends {
            let (source, interface) = self.route(*backend).await?;
            sources.extend(source.map(|source| (*backend, source)));
            ways.extend(interface.map(|interface| (*backend, interface)));
        }
        let names = links.iter().map(|link| link.interface.name.as_str());
        let machine = Machine {
            ways,
            forwarding_off: sysctl::forwarding_off(names),
            interfaces: links.iter().map(|link| link.interface.clone()).collect(),
            local_port_range: local_port_range()?,
            source_rules: self.has_source_rules().await?,
            sources,
            down: BTreeMap::new(),
            kernel: Some(self.kernel(&links).await?),
            followed: false,
        };
        Ok((machine, links))
    }

    /// Whether a routing rule (`ip rule`) looks at a packet's source.
    pub async fn has_source_rules(&self) -> Result<bool> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Result<Vec<RuleMessage>, _> =
                self.handle.rule().get(version.clone()).execute().try_collect().await;
            match rules {
                Ok(rules) if rules.iter().any(looks_at_source) => return Ok(true),
                // A kernel without policy routing, or without IPv6, has no rules to list.
                Ok(_) | Err(rtnetlink::Error::NetlinkError(_)) => {}
                Err(error) => {
                    return Err(error).context("cannot list the routing rules over netlink");
                }
            }
        }
        Ok(false)
    }

    /// The routes of a family that lead elsewhere: default routes, and those with a router.
    async fn routes_elsewhere(&self, v6: bool) -> Result<Vec<RouteMessage>> {
        let request = if v6 {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
        } else {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
        };
        let routes: Result<Vec<RouteMessage>, _> = self.handle.route().get(request).execute().try_collect().await;
        match routes {
            Ok(routes) => Ok(routes.into_iter().filter(leads_elsewhere).collect()),
            // A kernel without IPv6 has no routes to list.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(Vec::new()),
            Err(error) => Err(error).context("cannot list the routes over netlink"),
        }
    }

    /// What stands in the way of a steer, and what was done about it.
    async fn kernel(&self, links: &[Link]) -> Result<Kernel> {
        let strict = links.iter().map(|link| &link.interface).filter(|interface| is_strict(&interface.name));
        let mut kernel = Kernel { strict: strict.map(|interface| interface.index).collect(), ..Kernel::default() };
        for (v6, by) in [false, true].into_iter().zip(&mut kernel.default_by) {
            for route in self.routes_elsewhere(v6).await? {
                kernel.leads_by.extend(ways(&route));
                if !is_default(&route) {
                    continue;
                }
                match FallbackRoute::of(&route) {
                    Some(ours) => drop(kernel.fallback_routes.insert(ours)),
                    None => by.extend(ways(&route)),
                }
            }
        }
        Ok(kernel)
    }

    /// The source address the kernel would choose towards `destination`, and the interface it would send by; none without
    /// a route.
    async fn route(&self, destination: IpAddr) -> Result<(Option<IpAddr>, Option<u32>)> {
        let request = match destination {
            IpAddr::V4(address) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(address, 32).build()
            }
            IpAddr::V6(address) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(address, 128).build()
            }
        };
        match self.handle.route().get(request).execute().try_next().await {
            Ok(Some(route)) => Ok((
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                    RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                    _ => None,
                }),
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(interface) => Some(*interface),
                    _ => None,
                }),
            )),
            Ok(None) | Err(rtnetlink::Error::NetlinkError(_)) => Ok((None, None)),
            Err(error) => Err(error).with_context(|| format!("cannot ask for the route to {destination}")),
        }
    }

    /// Lets an interface receive what is for any multicast group, or no more; whether it was otherwise before. One that is
    /// not there is nothing to change.
    async fn set_all_multicast(&self, name: &str, on: bool) -> Result<bool> {
        let links: Vec<LinkMessage> =
            match self.handle.link().get().match_name(name.to_owned()).execute().try_collect().await {
                Ok(links) => links,
                Err(rtnetlink::Error::NetlinkError(_)) => return Ok(false),
                Err(error) => return Err(error).with_context(|| format!("cannot ask for {name} over netlink")),
            };
        let Some(link) = links.first().filter(|link| link.header.flags.contains(LinkFlags::Allmulti) != on) else {
            return Ok(false);
        };
        let mut message = LinkMessage::default();
        message.header.index = link.header.index;
        message.header.flags = if on { LinkFlags::Allmulti } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Allmulti;
        let done = self.handle.link().set(message).execute().await;
        done.with_context(|| format!("cannot switch all-multicast mode of {name}"))?;
        Ok(true)
    }
}

/// An interface as the kernel tells of it, without its addresses.
pub(crate) fn link(message: &LinkMessage) -> Link {
    // A header of 14 bytes; everything else (tun, WireGuard, PPP, IP tunnels) delivers bare IP packets.
    let has_link_header = matches!(message.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback);
    let mut link = Link {
        interface: Interface {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            has_link_header,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            addresses: Vec::new(),
        },
        kind: None,
        xdp_program: None,
        receive_queues: 1,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.interface.mtu = *mtu,
            LinkAttribute::NumRxQueues(queues) => link.receive_queues = *queues,
            LinkAttribute::Address(address) if has_link_header => {
                link.interface.mac = address.as_slice().try_into().ok();
            }
            LinkAttribute::LinkInfo(info) => {
                link.kind = info.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => {
                link.xdp_program = xdp.iter().find_map(|xdp| match xdp {
                    LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
                        Some(*id)
                    }
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// The interface's own address: on point-to-point links `Address` is the peer's.
pub(crate) fn local_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let mut peer_or_own = None;
    for attribute in attributes {
        match attribute {
            AddressAttribute::Local(address) => return Some(*address),
            AddressAttribute::Address(address) => peer_or_own = Some(*address),
            _ => {}
        }
    }
    peer_or_own
}

/// Whether an address is none to show to others if there is a better one, as RFC 6724 section 5 has it: still or already
/// unusable, deprecated, or made for a short time (for IPv4 the same bit says "secondary").
pub(crate) fn for_special_use(attributes: &[AddressAttribute]) -> (bool, bool, bool) {
    let flags = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let any = |wanted| flags.is_some_and(|flags| flags.intersects(wanted));
    (
        any(AddressFlags::Tentative | AddressFlags::Dadfailed),
        any(AddressFlags::Deprecated),
        any(AddressFlags::Secondary),
    )
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
}

fn leads_elsewhere(route: &RouteMessage) -> bool {
    let by_router = |attribute: &RouteAttribute| {
        matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_))
    };
    let somewhere = route.header.destination_prefix_length == 0 || route.attributes.iter().any(by_router);
    somewhere && route.header.kind == RouteType::Unicast
}

/// The interfaces that a route leads to: one, or several by turns.
fn ways(route: &RouteMessage) -> Vec<u32> {
    let mut ways = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ways.push(*index),
            RouteAttribute::MultiPath(hops) => ways.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    ways
}

/// Whether reverse-path filtering is strict there: the larger of the two settings counts.
fn is_strict(interface: &str) -> bool {
    let setting = |name: &str| -> u8 {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    setting("all").max(setting(interface)) == 1
}

fn looks_at_source(rule: &RuleMessage) -> bool {
    rule.header.src_len > 0 || rule.attributes.iter().any(|attribute| matches!(attribute, RuleAttribute::Source(_)))
}

/// `net.ipv4.ip_local_port_range` of our network namespace; IPv6 uses it too.
fn local_port_range() -> Result<(u16, u16)> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => anyhow::bail!("{FILE} says {text:?}, not two ports"),
    }
}

/// Lets an interface receive what is for any multicast group, or no more; whether it was otherwise before. One that is not
/// there is nothing to change.
pub fn set_all_multicast(name: &str, on: bool) -> Result<bool> {
    let name = name.to_owned();
    by_itself(async move |netlink| netlink.set_all_multicast(&name, on).await)
}

/// Does something without the caller's runtime, so that it can be done while something is undone.
fn by_itself<T: Send + 'static>(job: impl AsyncFnOnce(Netlink) -> Result<T> + Send + 'static) -> Result<T> {
    let run = move || -> Result<T> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot wait for netlink")?;
        runtime.block_on(async { job(Netlink::connect()?).await })
    };
    // A thread is in the network namespace of the one that made it.
    std::thread::spawn(run).join().unwrap_or_else(|_| anyhow::bail!("a request over netlink failed"))
}
