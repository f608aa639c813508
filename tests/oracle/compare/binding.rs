//! Which port each lab has chosen for a flow.

use std::collections::HashMap;

use super::{Oracle, mark::mark_of};
use crate::flow::{End, Flow, Stage};
use crate::generate::Input;
use crate::packet::TCP;
use crate::plan::Side;
use crate::twin::Middle;
use crate::view::View;

impl Oracle {
    /// At the server: puts the client's port in the place of the one that this lab has chosen for the flow.
    pub(super) fn give_back_port(frame: &mut [u8], flow: &Flow, by: End, lab: usize) {
        let Some(view) = View::of(frame) else { return };
        let port = flow.client_port.to_be_bytes();
        if let Some(inner) = view.inner(frame) {
            let at = inner.dst_port_at();
            let is_its = flow.is_bound_to(lab, inner.port(frame, at));
            // The machine quotes what ended within the port when it came.
            let is_half =
                frame.len() == at + 1 && flow.bound[lab].is_some_and(|port| port.to_be_bytes()[0] == frame[at]);
            if flow.chooses_port[lab] && (is_its || is_half) && inner.src == flow.listen.to {
                let checksum = view.checksum_at();
                inner.replace(frame, at, &port[..if is_half { 1 } else { 2 }], false, checksum);
            }
            return;
        }
        let at = view.src_port_at();
        let Some(found) = view.port(frame, at) else { return };
        let is_translated = view.src == flow.seen && view.dst == flow.listen.to;
        // In a hairpin the server's own packets come by here too, from a port that may happen to be the same.
        let is_chosen = by == End::Client && (is_translated || flow.is_bound_to(lab, Some(found)));
        if flow.chooses_port[lab] && found != flow.client_port && is_chosen {
            view.replace(frame, at, &port, false, None);
        }
    }

    /// Reads from the client's packets that arrived which source port their flows have. No two flows may share one.
    pub(super) fn learn_bindings(&mut self, inputs: &[Input], raw: &[Vec<(Side, Vec<u8>)>; 2]) {
        let by_mark: HashMap<u16, &Input> = inputs.iter().map(|input| (input.mark, input)).collect();
        for lab in [0, 1] {
            for (at, frame) in &raw[lab] {
                let Some(input) = by_mark.get(&mark_of(frame, &by_mark)) else { continue };
                let (Some(index), End::Client, Some(view)) = (input.flow, input.by, View::of(frame)) else {
                    continue;
                };
                if matches!(input.what, "broken" | "strange") {
                    continue;
                }
                let flow = &self.generator.flows[index];
                let is_there = *at == flow.side(End::Server) && view.protocol == flow.protocol;
                let is_translated = is_there && view.src == flow.seen && view.dst == flow.listen.to;
                if !is_translated || view.is_icmp_error(frame) || view.fragment.is_some_and(|(offset, _)| offset != 0) {
                    continue;
                }
                // What has no ports has port 0.
                let port = view.port(frame, view.src_port_at()).unwrap_or_default();
                if let Some(problem) = self.bind(lab, index, port) {
                    self.problem(format!("{:?}, {}: source port", Middle::BOTH[lab], input.what), || problem);
                }
            }
        }
    }

    fn bind(&mut self, lab: usize, index: usize, port: u16) -> Option<String> {
        self.generator.flows[index].reopens[lab] = false;
        let flow = &self.generator.flows[index];
        if flow.bound[lab] == Some(port) {
            return None;
        }
        let before = flow.bound[lab];
        let holder = self.holders[lab].insert((flow.protocol, flow.seen, flow.listen.to, flow.to_port(), port), index);
        // Another port than before: only after the end of a connection, or where it never became one.
        let may_change = flow.protocol == TCP
            && matches!(
                flow.stage,
                Stage::Opening | Stage::Crossed | Stage::Closed | Stage::Reset(_) | Stage::Refused | Stage::Odd
            );
        let mut problem = None;
        if !flow.chooses_port[lab] && port != flow.client_port {
            problem = Some(format!("port {port} of {flow:?} is not kept"));
        }
        if let Some(before) = before.filter(|_| !may_change) {
            problem = Some(format!("port {port} follows {before} for {flow:?}"));
        }
        if let Some(other) = holder.filter(|other| *other != index && self.generator.flows[index].chooses_port[lab]) {
            let other = &self.generator.flows[other];
            let may_be_over = other.stage == Stage::Odd
                || other.protocol == TCP && !matches!(other.stage, Stage::Answered | Stage::Established);
            if other.bound[lab] == Some(port) && !may_be_over {
                problem = Some(format!("port {port} of {flow:?} is that of {other:?}"));
            }
        }
        let flow = &mut self.generator.flows[index];
        flow.bound_before[lab] = before;
        flow.bound[lab] = Some(port);
        problem
    }
}
