//! Which interfaces want programs: those that appeared, came back as others, or changed their MAC address. Pure.

use std::{collections::BTreeSet, fmt};

use crate::{config::Placed, machine::netlink::Link, state::AttachedInterface};

/// Why an interface wants programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It was not there before.
    Appeared,
    /// It is another device of the same name.
    Recreated,
    /// The programs compare with its MAC address, which changed.
    OtherMac,
}

/// An interface that wants programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanting<'a> {
    /// Its slot: its place in the configuration.
    pub(super) slot: u32,
    /// As it is now.
    pub(super) link: &'a Link,
    /// What was in its slot.
    pub(super) before: Option<&'a AttachedInterface>,
    /// Why.
    pub(super) why: Why,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Appeared => "is there",
            Self::Recreated => "is there again, as another device",
            Self::OtherMac => "has another MAC address",
        })
    }
}

/// The interfaces that want programs.
pub(super) fn wanting<'a>(
    configured: &[Placed<String>],
    attached: &'a [AttachedInterface],
    links: &'a [Link],
) -> Vec<Wanting<'a>> {
    let mut wanting = Vec::new();
    for (slot, name) in (0..).zip(configured) {
        let before = attached.iter().find(|one| one.slot == slot);
        let Some(link) = links.iter().find(|link| link.interface.name == name.value) else { continue };
        let why = match before {
            None => Why::Appeared,
            Some(before) if before.index != link.interface.index => Why::Recreated,
            Some(before) if before.mac != link.interface.mac => Why::OtherMac,
            Some(_) => continue,
        };
        wanting.push(Wanting { slot, link, before, why });
    }
    wanting
}

/// The configured interfaces that are not there, not even by another name.
pub(super) fn absent(
    configured: &[Placed<String>],
    attached: &[AttachedInterface],
    links: &[Link],
) -> BTreeSet<String> {
    let is_there = |(slot, name): &(u32, &Placed<String>)| {
        let index = attached.iter().find(|one| one.slot == *slot).map(|one| one.index);
        links.iter().any(|link| link.interface.name == name.value || Some(link.interface.index) == index)
    };
    (0..).zip(configured).filter(|one| !is_there(one)).map(|(_, name)| name.value.clone()).collect()
}

#[cfg(test)]
mod tests;
