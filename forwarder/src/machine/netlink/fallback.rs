//! Default routes of the lowest preference, which the kernel needs to send anything that could be steered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol},
};
use serde::{Deserialize, Serialize};

use super::{Netlink, by_itself};

/// Who has made a route, as `ip route` shows it: a number that `rt_protos` of iproute2 gives to nobody.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(102);
/// Below every other route: `u32::MAX` is what the kernel's own "unreachable" has.
const METRIC: u32 = u32::MAX - 1;

/// A default route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FallbackRoute {
    /// Whether it is for IPv6.
    pub v6: bool,
    /// The index of the interface.
    pub interface: u32,
    /// The router; none on a point-to-point link.
    pub gateway: Option<IpAddr>,
}

impl FallbackRoute {
    /// One of the kernel's default routes, if it is of ours.
    pub(super) fn of(route: &RouteMessage) -> Option<Self> {
        let mut found =
            Self { v6: route.header.address_family == super::AddressFamily::Inet6, interface: 0, gateway: None };
        let mut metric = 0;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.interface = *index,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => found.gateway = Some((*address).into()),
                RouteAttribute::Gateway(RouteAddress::Inet6(address)) => found.gateway = Some((*address).into()),
                _ => {}
            }
        }
        (route.header.protocol == PROTOCOL && metric == METRIC).then_some(found)
    }

    /// "IPv4" or "IPv6".
    pub const fn family(&self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }

    fn message(&self) -> RouteMessage {
        if self.v6 {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(self.interface);
            let route = route.priority(METRIC).protocol(PROTOCOL);
            match self.gateway {
                Some(IpAddr::V6(gateway)) => route.gateway(gateway).build(),
                _ => route.build(),
            }
        } else {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(self.interface);
            let route = route.priority(METRIC).protocol(PROTOCOL);
            match self.gateway {
                Some(IpAddr::V4(gateway)) => route.gateway(gateway).build(),
                _ => route.build(),
            }
        }
    }
}

impl Netlink {
    /// Adds one.
    pub async fn add_fallback_route(&self, route: &FallbackRoute) -> Result<()> {
        let done = self.handle.route().add(route.message()).execute().await;
        done.with_context(|| format!("cannot add a default route of the lowest preference for {}", route.family()))
    }

    /// Removes one; one that is gone already is no error.
    pub async fn remove_fallback_route(&self, route: &FallbackRoute) -> Result<()> {
        match self.handle.route().del(route.message()).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ESRCH => Ok(()),
            done => {
                done.with_context(|| format!("cannot remove the default route for {} that was added", route.family()))
            }
        }
    }
}

/// Removes one; one that is gone already is no error.
pub fn remove_fallback_route(route: FallbackRoute) -> Result<()> {
    by_itself(async move |netlink| netlink.remove_fallback_route(&route).await)
}
