//! `[[neighbor]]` on its way into the tables.

use std::sync::Arc;

use forwarder_common::abi::{RangeKey, Rule};

use super::{Builder, LogicalRule};
use crate::config::{
    family::Family,
    neighbor::{Answer, Asked},
};

impl<A: Family> Builder<A> {
    /// Adds a prefix that neighbours are answered for, if it is of this family.
    pub(super) fn add_neighbor(&mut self, name: &Arc<str>, answer: Answer, asked: &Asked) {
        let (Some(address), Some(ours), Some(prober)) =
            (A::of(asked.addresses.addr()), A::of(asked.ours), A::of(asked.prober))
        else {
            return;
        };
        let body = Rule::neighbor(asked.via, ours, prober, answer == Answer::WhileAlive);
        let prefix_len = RangeKey::<A>::SIDE_BITS + u32::from(asked.addresses.prefix_len());
        let key = RangeKey { prefix_len, ..RangeKey::neighbor(asked.interface, address) };
        self.tables.ranges.insert(key, self.tables.rules.len());
        self.tables.rules.push(LogicalRule { name: Arc::clone(name), body, allow: None });
    }
}
