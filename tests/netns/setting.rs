//! How forwarder runs: by which hook, connected how.

use std::net::IpAddr;

use forwarder_lab::{Family, Offloads, Shape, Topology};

/// A mode of `forwarder load` and the network to run it in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// As in `--mode`.
    pub(crate) mode: Mode,
    pub(crate) shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Native,
    Tc,
}

/// Which source address home sees; each has a public address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Preserve,
    Masquerade,
    Fixed,
}

impl Setting {
    pub(crate) const NATIVE_TWO_ARMED: Self = Self { mode: Mode::Native, shape: Shape::TwoArmed };
    pub(crate) const NATIVE_ONE_ARMED: Self = Self { mode: Mode::Native, shape: Shape::OneArmed };
    pub(crate) const TC_TWO_ARMED: Self = Self { mode: Mode::Tc, shape: Shape::TwoArmed };
    pub(crate) const TC_ONE_ARMED: Self = Self { mode: Mode::Tc, shape: Shape::OneArmed };

    /// Client, forwarder and home, with the addresses of [`public_address`] and [`fixed_source`] on the forwarder.
    pub(crate) fn network(self, name: &str) -> Topology {
        let offloads = match self.mode {
            Mode::Native => Offloads::Native,
            // TC has to cope with what the kernel does by default.
            Mode::Tc => Offloads::Default,
        };
        let net = Topology::new(name, self.shape, offloads).unwrap();
        self.give_addresses(&net);
        net
    }

    /// Gives the forwarder the addresses of [`public_address`] and [`fixed_source`].
    pub(crate) fn give_addresses(self, net: &Topology) {
        let (prefix4, prefix6) = public_prefixes(self.shape);
        for source in Source::ALL {
            let last = source.last_byte();
            net.forwarder.further_address("eth0", &format!("{prefix4}.{last}/24")).unwrap();
            net.forwarder.further_address("eth0", &format!("{prefix6}::{last:x}/64")).unwrap();
        }
        let inner = *net.interfaces().last().unwrap();
        for family in Family::ALL {
            let length = if family == Family::V4 { 24 } else { 64 };
            let address = format!("{}/{length}", fixed_source(net, family));
            net.forwarder.further_address(inner, &address).unwrap();
        }
    }

    /// The word for `--mode`.
    pub(crate) fn mode_word(self) -> &'static str {
        match self.mode {
            Mode::Native => "native",
            Mode::Tc => "tc",
        }
    }
}

impl Source {
    pub(crate) const ALL: [Self; 3] = [Self::Preserve, Self::Masquerade, Self::Fixed];

    /// Of its public address: part of the plan of addresses, as are the ports below.
    pub(crate) fn last_byte(self) -> u8 {
        match self {
            Self::Preserve => 11,
            Self::Masquerade => 12,
            Self::Fixed => 13,
        }
    }

    /// Where home listens for clients of this kind.
    pub(crate) fn home_port(self) -> u16 {
        8000 + u16::from(self.last_byte())
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Preserve => "preserve",
            Self::Masquerade => "masquerade",
            Self::Fixed => "fixed",
        }
    }

    /// What the configuration says.
    pub(crate) fn key(self, net: &Topology, family: Family) -> String {
        match self {
            Self::Preserve | Self::Masquerade => self.name().to_owned(),
            Self::Fixed => fixed_source(net, family).to_string(),
        }
    }

    /// The address that home must see for `client`.
    pub(crate) fn seen(self, net: &Topology, family: Family, client: IpAddr) -> IpAddr {
        match self {
            Self::Preserve => client,
            Self::Masquerade => net.inner_address(family),
            Self::Fixed => fixed_source(net, family),
        }
    }
}

/// The public address for clients of this kind.
pub(crate) fn public_address(net: &Topology, source: Source, family: Family) -> IpAddr {
    let (prefix4, prefix6) = public_prefixes(net.shape);
    let last = source.last_byte();
    match family {
        Family::V4 => format!("{prefix4}.{last}").parse().unwrap(),
        Family::V6 => format!("{prefix6}::{last:x}").parse().unwrap(),
    }
}

/// An address of the forwarder on the side of home that is not the one the kernel would choose.
pub(crate) fn fixed_source(net: &Topology, family: Family) -> IpAddr {
    let text = match (net.shape, family) {
        (Shape::TwoArmed, Family::V4) => "10.8.0.9",
        (Shape::TwoArmed, Family::V6) => "fd08::9",
        (Shape::OneArmed, Family::V4) => "203.0.113.9",
        (Shape::OneArmed, Family::V6) => "2001:db8:3::9",
    };
    text.parse().unwrap()
}

fn public_prefixes(shape: Shape) -> (&'static str, &'static str) {
    match shape {
        Shape::TwoArmed => ("198.51.100", "2001:db8:1"),
        Shape::OneArmed => ("203.0.113", "2001:db8:3"),
    }
}

pub(crate) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}
