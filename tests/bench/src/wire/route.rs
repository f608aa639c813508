//! Which way a packet takes from this machine, as `ip` tells.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use forwarder_lab::patience;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::addresses::Mac;

/// The way to a destination by one interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// The address this machine has there.
    pub(super) source: IpAddr,
    pub(super) source_mac: Mac,
    /// Of the destination itself, or of the router before it.
    pub(super) next_hop_mac: Mac,
}

#[derive(Deserialize)]
struct Answer {
    gateway: Option<IpAddr>,
    dev: String,
    prefsrc: IpAddr,
}

#[derive(Deserialize)]
struct Link {
    address: String,
}

#[derive(Deserialize)]
struct Neighbour {
    lladdr: Option<String>,
}

impl Route {
    /// Asks the kernel, which asks the network if it does not know the next hop yet.
    pub(super) fn to(destination: IpAddr, interface: &str) -> Result<Self> {
        let text = destination.to_string();
        let answers: Vec<Answer> = ip(&["route", "get", &text, "oif", interface])?;
        let answer = answers.into_iter().next().with_context(|| format!("there is no route to {text}"))?;
        if answer.dev != interface {
            bail!("{text} is reached by {}, not by {interface}", answer.dev);
        }
        let next_hop = answer.gateway.unwrap_or(destination);
        let links: Vec<Link> = ip(&["link", "show", "dev", interface])?;
        let link = links.first().with_context(|| format!("there is no interface {interface}"))?;
        Ok(Self {
            source: answer.prefsrc,
            source_mac: mac(&link.address)?,
            next_hop_mac: neighbour(next_hop, destination, interface)?,
        })
    }
}

fn neighbour(next_hop: IpAddr, destination: IpAddr, interface: &str) -> Result<Mac> {
    let begun = Instant::now();
    let text = next_hop.to_string();
    loop {
        let neighbours: Vec<Neighbour> = ip(&["neigh", "show", &text, "dev", interface])?;
        if let Some(address) = neighbours.into_iter().find_map(|neighbour| neighbour.lladdr) {
            return mac(&address);
        }
        if begun.elapsed() > patience() {
            bail!("{text} does not answer on {interface}: nobody tells its link address");
        }
        // Any packet makes the kernel ask: one to the discard service.
        let any = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let _ = UdpSocket::bind(any).and_then(|socket| socket.send_to(&[0], (destination, 9)));
        thread::sleep(Duration::from_millis(50));
    }
}

fn ip<T: DeserializeOwned>(arguments: &[&str]) -> Result<T> {
    let output = Command::new("ip").arg("-json").args(arguments).output().context("cannot run ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    // An empty answer is empty, not an empty list.
    let printed = if output.stdout.trim_ascii().is_empty() { b"[]" } else { output.stdout.as_slice() };
    serde_json::from_slice(printed).with_context(|| format!("cannot read what ip {} printed", arguments.join(" ")))
}

fn mac(text: &str) -> Result<Mac> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut mac = Mac::default();
    for byte in &mut mac {
        *byte = bytes.next().and_then(Result::ok).with_context(|| format!("{text} is no MAC address"))?;
    }
    Ok(mac)
}
