//! The rules, once in forwarder's words and once in netfilter's, and how both kernels are set.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use forwarder_lab::Family;

use super::{Listen, NEIGHBOURS_PREFIX, Side, Source, What, fixed, largest_segment, listens, ours, prefixes};

impl Listen {
    fn forward(&self, source: &str) -> String {
        let (listen, to, protocol) = match self.what {
            What::Ports { first, to, count: 1 } => (end(self.address, first), end(self.to, to), ""),
            What::Ports { first, to, count } => (
                format!("{}-{}", end(self.address, first), first + count - 1),
                format!("{}-{}", end(self.to, to), to + count - 1),
                "",
            ),
            What::Echo => (self.address.to_string(), self.to.to_string(), "protocol = \"icmp\"\n"),
            What::Everything => (self.address.to_string(), self.to.to_string(), ""),
        };
        let name = self.name;
        format!(
            "[[forward]]\nname = \"{name}\"\nlisten = \"{listen}\"\nto = \"{to}\"\n{protocol}source = \"{source}\"\n\n"
        )
    }

    fn dnat(&self) -> String {
        let ip = if self.address.is_ipv4() { "ip" } else { "ip6" };
        let (address, to) = (self.address, self.to);
        let bracketed = if address.is_ipv4() { to.to_string() } else { format!("[{to}]") };
        match self.what {
            What::Ports { first, to: first_to, count } => ["tcp", "udp"]
                .map(|protocol| {
                    let mut rules = String::new();
                    for index in 0..count {
                        let (port, to) = (first + index, first_to + index);
                        writeln!(rules, "{ip} daddr {address} {protocol} dport {port} dnat to {bracketed}:{to}")
                            .unwrap();
                    }
                    rules
                })
                .concat(),
            What::Echo => {
                let protocol = if address.is_ipv4() { "icmp" } else { "ipv6-icmp" };
                format!("{ip} daddr {address} meta l4proto {protocol} dnat to {to}\n")
            }
            What::Everything => format!("{ip} daddr {address} dnat to {to}\n"),
        }
    }
}

fn end(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// forwarder's configuration. Nothing expires while the test runs.
pub(crate) fn configuration(family: Family, source: Source) -> String {
    let clamps = largest_segment(family, source).is_some();
    let mut text = format!("mss_clamp = {clamps}\n[limits]\nflows = 65536\nnew_flows = 65536\n[timeouts]\n");
    for name in ["opening", "established", "closing", "reset"] {
        writeln!(text, "tcp_{name} = \"2h\"").unwrap();
    }
    for name in ["udp_opening", "udp_established", "icmp", "other"] {
        writeln!(text, "{name} = \"2h\"").unwrap();
    }
    text + &rules(family, source)
}

/// The rules alone, in forwarder's words.
pub(crate) fn rules(family: Family, source: Source) -> String {
    let key = match source {
        Source::Prefix => return one_to_one(family),
        Source::Preserve => "preserve".to_owned(),
        Source::Fixed => fixed(family).to_string(),
        Source::Masquerade | Source::Outgoing => "masquerade".to_owned(),
    };
    let mut text: String = listens(family, source).iter().map(|listen| listen.forward(&key)).collect();
    if source == Source::Outgoing {
        let from = neighbours(family);
        writeln!(text, "[[masquerade]]\nname = \"out\"\nfrom = [\"{from}\"]\nout = \"eth0\"").unwrap();
        let address = ours(family, Side::Client);
        writeln!(text, "address = \"{address}\"").unwrap();
    }
    text
}

fn neighbours(family: Family) -> &'static str {
    NEIGHBOURS_PREFIX[usize::from(family == Family::V6)]
}

fn one_to_one(family: Family) -> String {
    let rule = |(index, (outer, inner, length)): (usize, &(&str, &str, u8))| {
        format!("[[forward]]\nname = \"net{index}\"\nlisten = \"{outer}/{length}\"\nto = \"{inner}/{length}\"\n\n")
    };
    prefixes(family).iter().enumerate().map(rule).collect()
}

/// The same for `nft -f`.
pub(crate) fn ruleset(family: Family, source: Source) -> String {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let mut pre: String = String::new();
    let mut post = String::new();
    if source == Source::Prefix {
        for (outer, inner, length) in prefixes(family) {
            let (outer, inner) = (format!("{outer}/{length}"), format!("{inner}/{length}"));
            writeln!(pre, "{ip} daddr {outer} dnat {ip} prefix to {ip} daddr map {{ {outer} : {inner} }}").unwrap();
            writeln!(post, "{ip} saddr {inner} snat {ip} prefix to {ip} saddr map {{ {inner} : {outer} }}").unwrap();
        }
    } else {
        pre.extend(listens(family, source).iter().map(Listen::dnat));
        // Who is in the backend's network would be answered directly.
        let home = if family == Family::V4 { "10.8.0.0/24" } else { "fd08::/64" };
        post = match source {
            Source::Preserve => format!("{ip} saddr {home} oifname eth1 ct status dnat masquerade\n"),
            Source::Fixed => format!("ct status dnat snat to {}\n", fixed(family)),
            _ => "ct status dnat masquerade\n".to_owned(),
        };
        if source == Source::Outgoing {
            writeln!(post, "{ip} saddr {} oifname eth0 masquerade", neighbours(family)).unwrap();
        }
    }
    format!(
        "table {ip} nat {{\nchain pre {{ type nat hook prerouting priority dstnat;\n{pre}}}\n\
         chain post {{ type nat hook postrouting priority srcnat;\n{post}}}\n}}\n"
    )
}

/// Segment sizes of what is translated, for `nft -f`.
pub(crate) fn segments(family: Family, source: Source) -> String {
    if largest_segment(family, source).is_none() {
        return String::new();
    }
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let home = if family == Family::V4 { "10.8.0.0/24" } else { "fd08::/64" };
    let mut which = vec!["ct status dnat".to_owned()];
    match source {
        // Without connections: all that goes through is translated.
        Source::Prefix if family == Family::V6 => which = vec![String::new()],
        Source::Prefix => {
            which.extend(
                prefixes(family).iter().map(|(_, inner, length)| format!("ct original ip saddr {inner}/{length}")),
            );
        }
        Source::Outgoing => {
            which.push(format!("ct original {ip} saddr {} ct original {ip} daddr != {home}", neighbours(family)));
        }
        Source::Masquerade | Source::Preserve | Source::Fixed => {}
    }
    // Once for each packet, whichever it is.
    let rules = which.iter().map(|which| format!("{which} tcp flags syn tcp option maxseg size set rt mtu accept\n"));
    format!(
        "table {ip} segments {{\nchain forward {{\ntype filter hook forward priority mangle\n{}}}\n}}\n",
        rules.collect::<String>()
    )
}

/// Connection tracking's judgement, before anything is translated: the marks of what it calls invalid are noted in a set.
pub(crate) fn judgement(family: Family) -> String {
    let (ip, mark) = if family == Family::V4 { ("ip", "@nh,32,16") } else { ("ip6", "@nh,16,16") };
    format!(
        "table {ip} {JUDGED} {{\nset invalid {{\ntype inet_service\nflags dynamic\nsize 65535\n}}\n\
         chain see {{\ntype filter hook prerouting priority mangle\nct state invalid update @invalid {{ {mark} }}\n}}\n}}\n"
    )
}

/// The table of [`judgement`].
pub(crate) const JUDGED: &str = "judged";

/// Where netfilter translates without connections: prefixes of IPv6 (NPTv6), for `ip6tables`.
pub(crate) fn npt(family: Family, source: Source) -> Vec<String> {
    if family == Family::V4 || source != Source::Prefix {
        return Vec::new();
    }
    let rules = |(outer, inner, length): &(&str, &str, u8)| {
        let (outer, inner) = (format!("{outer}/{length}"), format!("{inner}/{length}"));
        [
            format!("-t mangle -A PREROUTING -d {outer} -j DNPT --src-pfx {outer} --dst-pfx {inner}"),
            format!("-t mangle -A POSTROUTING -s {inner} -j SNPT --src-pfx {inner} --dst-pfx {outer}"),
        ]
    };
    prefixes(family).iter().flat_map(rules).collect()
}

/// What netfilter's connection tracking is told: expire nothing either, and, as forwarder, do not follow TCP windows.
pub(crate) const CONNTRACK: [(&str, &str); 21] = [
    ("nf_conntrack_frag6_high_thresh", "268435456"),
    ("nf_conntrack_frag6_timeout", "7200"),
    ("nf_conntrack_tcp_be_liberal", "1"),
    ("nf_conntrack_tcp_ignore_invalid_rst", "1"),
    ("nf_conntrack_tcp_timeout_syn_sent", "7200"),
    ("nf_conntrack_tcp_timeout_syn_recv", "7200"),
    ("nf_conntrack_tcp_timeout_established", "7200"),
    ("nf_conntrack_tcp_timeout_fin_wait", "7200"),
    ("nf_conntrack_tcp_timeout_close_wait", "7200"),
    ("nf_conntrack_tcp_timeout_last_ack", "7200"),
    ("nf_conntrack_tcp_timeout_time_wait", "7200"),
    ("nf_conntrack_tcp_timeout_close", "7200"),
    ("nf_conntrack_tcp_timeout_max_retrans", "7200"),
    ("nf_conntrack_tcp_timeout_unacknowledged", "7200"),
    ("nf_conntrack_udp_timeout", "7200"),
    ("nf_conntrack_udp_timeout_stream", "7200"),
    ("nf_conntrack_icmp_timeout", "7200"),
    ("nf_conntrack_icmpv6_timeout", "7200"),
    ("nf_conntrack_generic_timeout", "7200"),
    ("nf_conntrack_gre_timeout", "7200"),
    ("nf_conntrack_gre_timeout_stream", "7200"),
];

/// Both kernels answer as often as they like, leave the flow label alone, name no nearer way, and keep fragments.
pub(crate) const KERNEL: [(&str, &str); 13] = [
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
    ("net.ipv4.conf.eth0.send_redirects", "0"),
    ("net.ipv4.conf.eth1.send_redirects", "0"),
    ("net.ipv4.ipfrag_high_thresh", "268435456"),
    ("net.ipv4.ipfrag_time", "7200"),
    ("net.ipv4.ipfrag_max_dist", "0"),
    ("net.ipv6.ip6frag_time", "7200"),
    ("net.ipv6.auto_flowlabels", "0"),
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv4.icmp_ratemask", "0"),
    ("net.ipv6.icmp.ratelimit", "0"),
    ("net.ipv6.icmp.error_anycast_as_unicast", "0"),
];
