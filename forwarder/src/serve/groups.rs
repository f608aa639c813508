//! Solicitations go to the group of the address that is asked for, so whoever answers in others' place has to receive those
//! groups (RFC 4861 section 7.2.8): all of them, for the addresses of a prefix are too many to join one by one. A NIC that
//! filters would not even hand the questions over.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::{config::Compiled, machine::netlink, state::State};

/// Switches all-multicast mode on where neighbour discovery is answered, and off again where it was for that and is not
/// any more. The state says where it was switched on.
pub fn receive(state: &mut State, compiled: &Compiled) -> Result<()> {
    let asked = compiled.neighbors.iter().flat_map(|neighbor| &neighbor.asked);
    let v6 = asked.filter(|asked| asked.addresses.addr().is_ipv6());
    let needed: BTreeSet<String> = v6.map(|asked| asked.interface_name.clone()).collect();
    for name in &needed {
        if netlink::set_all_multicast(name, true)? {
            state.all_multicast.insert(name.clone());
        }
    }
    let done: Vec<String> = state.all_multicast.difference(&needed).cloned().collect();
    for name in done {
        netlink::set_all_multicast(&name, false)?;
        state.all_multicast.remove(&name);
    }
    Ok(())
}
