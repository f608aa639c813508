//! Flows from their first packet to their last, and again.

use super::{Generator, Input};
use crate::flow::{Content, End, Stage};
use crate::packet::{ACK, FIN, PSH, RST, SYN, TCP};
use crate::plan;

impl Generator {
    pub(super) fn opens(&mut self, flow: usize) -> Input {
        let is_tcp = self.flows[flow].protocol == TCP;
        let content = Content {
            flags: if is_tcp { SYN } else { 0 },
            ack: None,
            options: if is_tcp { self.syn_options() } else { Vec::new() },
            unsummed: self.one_in(5),
            payload: if is_tcp { Vec::new() } else { self.payload() },
        };
        let mark = self.mark();
        self.flows[flow].advance(End::Client, content.flags, mark);
        self.flows[flow].reopens = [true; 2];
        let mut input = self.of_flow_marked("opens", flow, End::Client, &content, mark);
        if self.flows[flow].listen.name == plan::UNHIDDEN {
            // What forwarder leaves to the kernel it does not see begin.
            input.packets.iter_mut().for_each(|packet| packet.extensions.clear());
            input.packets.iter_mut().for_each(|packet| packet.options.clear());
        }
        if !is_tcp && self.one_in(15) {
            self.cut(&mut input);
        }
        input
    }

    pub(super) fn goes_on(&mut self, index: usize) -> Input {
        use End::{Client, Server};
        let stage = self.flows[index].stage;
        let either = self.pick(&[Client, Server]);
        let dice = self.rng.u32(..100);
        let (what, by, flags) = if self.flows[index].protocol == TCP {
            match (stage, dice) {
                (Stage::Opening, 0..66) => ("SYN-ACK", Server, SYN | ACK),
                (Stage::Opening, 66..80) => ("SYN again", Client, SYN),
                // Both open at once (RFC 9293 section 3.5).
                (Stage::Opening, 80..92) => ("SYN of the server", Server, SYN),
                (Stage::Opening, _) => ("refused", Server, RST | ACK),
                (Stage::Crossed, 0..50) => ("SYN-ACK of both", Client, SYN | ACK),
                (Stage::Crossed, _) => ("SYN-ACK", Server, SYN | ACK),
                (Stage::Answered, 0..80) => ("ACK", Client, ACK),
                (Stage::Answered, _) => ("SYN-ACK again", Server, SYN | ACK),
                (Stage::Established, 0..80) => ("data", either, ACK | PSH),
                (Stage::Established, 80..84) => ("SYN into a connection", Client, SYN),
                (Stage::Established, 84..94) => ("FIN", either, FIN | ACK),
                (Stage::Established, 94..97) => ("RST", either, RST | ACK),
                (Stage::Established, _) => ("RST", either, RST),
                (Stage::Half(end), 0..60) => ("data after FIN", end.other(), ACK | PSH),
                (Stage::Half(end), 60..70) => ("FIN again", end, FIN | ACK),
                (Stage::Half(end), _) => ("second FIN", end.other(), FIN | ACK),
                (Stage::Closed, 0..60) => ("last ACK", either, ACK),
                // Nobody knows whether the RST was in the window.
                (Stage::Reset(_), 0..40) => ("data after RST", either, ACK | PSH),
                (Stage::Closed | Stage::Reset(_) | Stage::Refused, _) => ("reuse", Client, SYN),
                (Stage::Odd, _) => unreachable!("odd flows do not go on"),
            }
        } else if matches!(stage, Stage::Opening) {
            if dice < 70 { ("answer", Server, 0) } else { ("again", Client, 0) }
        } else {
            ("datagram", either, 0)
        };
        let content = Content {
            flags,
            // The first has to be right; by the others, what comes back is recognised.
            ack: matches!(what, "ACK" | "SYN-ACK of both").then_some(self.flows[index].acknowledges),
            options: if flags & SYN != 0 { self.syn_options() } else { self.tcp_options() },
            unsummed: self.one_in(5),
            payload: if flags & (SYN | RST) != 0 || what == "last ACK" { Vec::new() } else { self.payload() },
        };
        let mark = self.mark();
        self.flows[index].advance(by, flags, mark);
        if what == "reuse" {
            self.flows[index].reopens = [true; 2];
        }
        let mut input = self.of_flow_marked(what, index, by, &content, mark);
        if content.ack.is_some() {
            // What the machine says of it is recognised by what it acknowledges, which others may, too: nothing is left to it.
            input.packets.iter_mut().for_each(|packet| packet.extensions.clear());
            input.packets.iter_mut().for_each(|packet| packet.options.clear());
        }
        input
    }
}
