//! The `clsact` qdisc, the old way to attach TC programs, and the filters on it.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};

use super::{Netlink, by_itself};

impl Netlink {
    /// Whether the interface has a `clsact` qdisc, the old way to attach TC programs.
    pub async fn has_clsact(&self, index: u32) -> Result<bool> {
        let index = i32::try_from(index).context("an interface index above 2^31")?;
        let mut qdiscs = self.handle.qdisc().get().index(index).ingress().execute();
        while let Some(qdisc) = qdiscs.try_next().await.context("cannot list qdiscs over netlink")? {
            let is_clsact = qdisc
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact"));
            if qdisc.header.index == index && is_clsact {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether any filter hangs on the `clsact` qdisc of the interface, in either direction.
    pub async fn has_clsact_filters(&self, index: u32) -> Result<bool> {
        let index = i32::try_from(index).context("an interface index above 2^31")?;
        let filters = || self.handle.traffic_filter(index);
        for request in [filters().get().ingress(), filters().get().egress()] {
            let found = request.execute().try_next().await;
            if found.context("cannot list traffic control filters over netlink")?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a filter of this priority hangs on the ingress of the interface.
    pub async fn has_ingress_filter(&self, index: u32, priority: u16) -> Result<bool> {
        let index = i32::try_from(index).context("an interface index above 2^31")?;
        let filters: Vec<_> = self
            .handle
            .traffic_filter(index)
            .get()
            .ingress()
            .execute()
            .try_collect()
            .await
            .context("cannot list traffic control filters over netlink")?;
        // The upper half of `tcm_info` is the priority, the lower the protocol.
        Ok(filters.iter().any(|filter| filter.header.info >> 16 == u32::from(priority)))
    }

    /// Removes the `clsact` qdisc of the interface, with every filter on it.
    pub async fn remove_clsact(&self, index: u32) -> Result<()> {
        let index = i32::try_from(index).context("an interface index above 2^31")?;
        let mut request = self.handle.qdisc().del(index);
        let message = request.message_mut();
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { major: 0xffff, minor: 0 };
        request.execute().await.context("cannot remove the clsact qdisc")
    }
}

/// Removes the `clsact` qdisc of an interface unless somebody's filter hangs on it.
pub fn remove_unused_clsact(index: u32) -> Result<()> {
    by_itself(async move |netlink| {
        if netlink.has_clsact(index).await? && !netlink.has_clsact_filters(index).await? {
            netlink.remove_clsact(index).await?;
        }
        Ok(())
    })
}
