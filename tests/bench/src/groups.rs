//! Which rows there are: those of a group are measured in turn with each other, and shown together.

use forwarder_lab::Family;

use crate::row::{Hook, Mode, Row, Size, Way};
use crate::selection::Selection;

/// Rows that answer one question.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// For people.
    pub(crate) title: &'static str,
    /// For programs.
    pub(crate) name: &'static str,
    pub(crate) rows: Vec<Row>,
}

const K: u32 = 1 << 10;
const M: u32 = 1 << 20;

const XDP: [Way; 4] = ways(Hook::Xdp);
const TC: [Way; 4] = ways(Hook::Tc);

const fn ways(hook: Hook) -> [Way; 4] {
    [
        Way::Forwarder { hook, mode: Mode::Preserve },
        Way::Forwarder { hook, mode: Mode::PreserveFlows },
        Way::Forwarder { hook, mode: Mode::Masquerade },
        Way::Forwarder { hook, mode: Mode::Prefix },
    ]
}

const fn forwarder(hook: Hook, mode: Mode) -> Way {
    Way::Forwarder { hook, mode }
}

const XDP_PRESERVE: Way = forwarder(Hook::Xdp, Mode::Preserve);
const XDP_PRESERVE_FLOWS: Way = forwarder(Hook::Xdp, Mode::PreserveFlows);
const XDP_MASQUERADE: Way = forwarder(Hook::Xdp, Mode::Masquerade);
const TC_PRESERVE: Way = forwarder(Hook::Tc, Mode::Preserve);
const TC_MASQUERADE: Way = forwarder(Hook::Tc, Mode::Masquerade);

/// What `--quick` measures: enough for every ratio that `--check` looks at.
const QUICK: [&str; 13] = [
    "v4/kernel",
    "v4/nftables/1k",
    "v4/xdp/preserve/1k",
    "v4/xdp/masquerade/1k",
    "v4/xdp/masquerade/64k",
    "v6/xdp/masquerade/1k",
    "v4/tc/preserve/1k",
    "v4/tc/masquerade/1k",
    "v4/xdp/preserve/1k/1-rule",
    "v4/xdp/preserve/1k/100k-rules",
    "v4/nftables/new",
    "v4/xdp/masquerade/new",
    "v4/tc/masquerade/new",
];

/// All groups, without the limits, which are measured with every row.
fn all() -> Vec<Group> {
    let [v4, v6] = Family::ALL;
    let rows = |family: Family, ways: &[(Way, u32)]| -> Vec<Row> {
        ways.iter().map(|(way, flows)| Row::new(family, *way, *flows)).collect()
    };
    let ways: Vec<(Way, u32)> = [Way::RedirectByIndex, Way::FibLookup, Way::Kernel, Way::Nftables, Way::Iptables]
        .into_iter()
        .chain(XDP)
        .chain(TC)
        .map(|way| (way, K))
        .collect();
    let flows = [
        (Way::Nftables, 64 * K),
        (XDP_PRESERVE, 1),
        (XDP_PRESERVE, 64 * K),
        (XDP_PRESERVE, M),
        (XDP_PRESERVE_FLOWS, 64 * K),
        (XDP_MASQUERADE, 1),
        (XDP_MASQUERADE, 64 * K),
        (XDP_MASQUERADE, M),
        (TC_PRESERVE, 64 * K),
        (TC_MASQUERADE, 1),
        (TC_MASQUERADE, 64 * K),
        (TC_MASQUERADE, M),
    ];
    let sizes = [Size::Middle, Size::Full].into_iter().flat_map(|size| {
        [Way::Kernel, Way::Nftables, XDP_PRESERVE, XDP_MASQUERADE, TC_PRESERVE, TC_MASQUERADE]
            .into_iter()
            .flat_map(move |way| [v4, v6].map(|family| Row::new(family, way, K).size(size)))
    });
    let rules = [XDP_PRESERVE, XDP_MASQUERADE, TC_PRESERVE]
        .into_iter()
        .flat_map(|way| [1, K, 100_000].map(|rules| Row::new(v4, way, K).rules(rules)));
    let new = [Way::Nftables, Way::Iptables, XDP_MASQUERADE, TC_MASQUERADE];
    vec![
        Group { title: "IPv4", name: "v4", rows: rows(v4, &ways) },
        Group { title: "IPv6", name: "v6", rows: rows(v6, &ways) },
        Group { title: "IPv4, number of flows", name: "flows-v4", rows: rows(v4, &flows) },
        Group { title: "IPv6, number of flows", name: "flows-v6", rows: rows(v6, &flows) },
        Group { title: "Number of rules", name: "rules", rows: rules.collect() },
        Group { title: "Size of packets", name: "sizes", rows: sizes.collect() },
        Group {
            title: "New flows: each packet opens one",
            name: "new",
            rows: new.into_iter().flat_map(|way| [v4, v6].map(|family| Row::fresh(family, way))).collect(),
        },
    ]
}

/// The groups with those rows that are wanted. The quick ones, or a few of certain names, are all in one group.
pub(crate) fn matching(selection: &Selection) -> Vec<Group> {
    let mut groups = all();
    for group in &mut groups {
        group.rows.retain(|row| selection.wants(&row.to_string(), &QUICK));
    }
    groups.retain(|group| !group.rows.is_empty());
    if matches!(selection, Selection::Quick | Selection::Names(_)) && !groups.is_empty() {
        let rows = groups.into_iter().flat_map(|group| group.rows).collect();
        return vec![Group { title: "Packet rates", name: "quick", rows }];
    }
    groups
}

impl Group {
    /// The same, each row of forwarder for each of so many forwarders.
    pub(crate) fn with_binaries(self, binaries: usize) -> Self {
        Self { rows: self.rows.into_iter().flat_map(|row| row.with_binaries(binaries)).collect(), ..self }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = all().iter().flat_map(|group| &group.rows).map(ToString::to_string).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn quick_rows_exist() {
        assert_eq!(matching(&Selection::Quick).first().unwrap().rows.len(), QUICK.len());
    }
}
