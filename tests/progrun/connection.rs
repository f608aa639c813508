//! A connection through a rule that keeps flows, as the client and as the backend see it.

use std::net::SocketAddr;

use forwarder_common::abi::{Bucket, Flow, FlowKey, FlowSlot, Layout, Slotted};
use forwarder_common::address::{V4, V6};
use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::fixture::{Sent, check, check_at_tc, check_both, forward, reply};
use crate::plan::end;
use crate::test_packet::Body::{self, Tcp};
use crate::test_packet::{TestPacket, flags};
use crate::world::{Hook, World};

/// A client, a rule, and the same connection as the backend sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) rule: &'static str,
    pub(crate) client: SocketAddr,
    pub(crate) listen: SocketAddr,
    pub(crate) source: SocketAddr,
    pub(crate) backend: SocketAddr,
}

/// Rule, listen port, backend port, and the address that the backend sees.
pub(crate) const KEEPING_FLOWS: [(&str, u16, u16, &str); 3] =
    [("masquerade", 90, 9090, "inner"), ("fixed", 91, 91, "inner_2"), ("flows", 92, 92, "client")];

impl Connection {
    /// From the client's port, which is kept.
    pub(crate) fn new(
        family: Family,
        (rule, listen, backend, source): (&'static str, u16, u16, &str),
        port: u16,
    ) -> Self {
        Self {
            rule,
            client: end(family, "client", port),
            listen: end(family, "public", listen),
            source: end(family, source, port),
            backend: end(family, "backend", backend),
        }
    }

    pub(crate) fn echo(family: Family, identifier: u16) -> Self {
        let connection = Self::new(family, ("echo", 0, 0, "inner"), identifier);
        Self { client: end(family, "client", identifier), source: end(family, "inner", identifier), ..connection }
    }

    /// A packet of the client, and how it leaves.
    pub(crate) fn request(self, body: Body) -> (TestPacket, Sent) {
        let packet = TestPacket::new(self.client, self.listen, body);
        let left = packet.forwarded(self.source, self.backend);
        (packet, forward(self.rule, left))
    }

    /// A packet of the backend, and how it leaves.
    pub(crate) fn answer(self, body: Body) -> (TestPacket, Sent) {
        let packet = TestPacket::new(self.backend, self.source, body);
        let left = packet.forwarded(self.listen, self.client);
        (packet, reply(self.rule, left))
    }

    /// The client's packet goes by TC.
    pub(crate) fn request_at_tc(self, world: &mut World, about: &str, body: Body) {
        let (packet, left) = self.request(body);
        check_at_tc(world, about, &packet, left);
    }

    /// The backend's packet goes by TC, whatever XDP makes of it.
    pub(crate) fn answer_at_tc(self, world: &mut World, about: &str, body: Body, at_xdp: Outcome) {
        let (packet, left) = self.answer(body);
        check(world, about, Hook::Xdp, &packet, &at_xdp.into());
        check(world, about, Hook::Tc, &packet, &left.into());
    }

    /// Packets of both sides go by XDP, and by TC as well where there is no XDP.
    pub(crate) fn is_fast(self, world: &mut World, about: &str, request: Body, answer: Body) {
        let (packet, left) = self.request(request);
        check_both(world, about, &packet, left);
        let (packet, left) = self.answer(answer);
        check_both(world, about, &packet, left);
    }

    /// Until both sides have spoken and the client has heard it.
    pub(crate) fn open(self, world: &mut World) {
        let (syn, left) = self.request(Tcp(flags::SYN));
        check_at_tc(world, "SYN", &syn, left.begins_flow());
        // XDP does not know of new flows: a packet that is for none of the rules is not ours there.
        self.answer_at_tc(world, "SYN-ACK", Tcp(flags::SYN_ACK), Outcome::NotOurs);
        self.request_at_tc(world, "ACK", Tcp(flags::ACK));
    }
}

/// How many entries the tables of a family have: (established, embryonic).
pub(crate) fn entries(world: &World, family: Family) -> (usize, usize) {
    fn of<A>(world: &World, suffix: &str) -> (usize, usize)
    where
        A: Ord + Slotted,
        FlowKey<A>: Layout,
        Flow<A>: Layout,
        FlowSlot<A>: Layout,
        Bucket<A>: Layout,
    {
        let count = |table: &str| world.flows::<A>(&format!("{table}_{suffix}")).len();
        (count("ESTABLISHED"), count("EMBRYONIC"))
    }
    if family == Family::V4 { of::<V4>(world, "V4") } else { of::<V6>(world, "V6") }
}
