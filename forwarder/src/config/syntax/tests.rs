//! Parts of rules, as text and back.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use super::*;
use proptest::prelude::*;

fn back<T: FromStr<Err = SyntaxError> + ToString>(text: &str) -> String {
    text.parse::<T>().map_or_else(|error| error.what, |value| value.to_string())
}

#[test]
fn listens() {
    for text in [
        "203.0.113.7",
        "203.0.113.7:80",
        "203.0.113.7:8000-8100",
        "2001:db8::1",
        "[2001:db8::1]:80",
        "[2001:db8::1]:80-90",
        "eth0",
        "eth0:80",
        "eth0.100:80-90",
        "br-lan:1-65535",
    ] {
        assert_eq!(back::<Listen>(text), text);
    }
    assert_eq!(back::<Listen>("[2001:db8::1]"), "2001:db8::1");
    assert_eq!(back::<Listen>("203.0.113.7:80-80"), "203.0.113.7:80");
    assert_eq!(back::<Listen>("203.0.113.7:80 - 90"), "203.0.113.7:80-90");
    assert_eq!(back::<Listen>("2001:DB8:0::1"), "2001:db8::1");
}

#[test]
fn prefixes() {
    for text in ["198.51.100.0/24", "10.0.0.0/8", "198.51.100.6/31", "2001:db8::/48", "2001:db8:0:1::/64", "2000::/3"] {
        assert_eq!(back::<Listen>(text), text);
        assert_eq!(back::<Target>(text), text);
    }
    let refused = [
        ("198.51.100.1/24", "bits are set beyond the prefix length"),
        ("2001:db8::1/64", "bits are set beyond the prefix length"),
        ("198.51.100.1/32", "one address needs no prefix length"),
        ("2001:db8::1/128", "one address needs no prefix length"),
        ("2001:db8::/65", "an IPv6 prefix is mapped one to one up to /64 (RFC 6296)"),
        ("198.51.100.0/33", "`33` is not a prefix length"),
        ("198.51.100.0/0", "`0` is not a prefix length"),
        ("198.51.100.0/x", "`x` is not a prefix length"),
        ("198.51.100.0/24:80", "a prefix takes every port and protocol"),
        ("[2001:db8::/48]:80", "a prefix takes every port and protocol"),
        ("224.0.0.0/8", "224.0.0.0 is a multicast address"),
        ("127.0.0.0/8", "127.0.0.0 is a loopback address"),
    ];
    for (text, what) in refused {
        assert_eq!(text.parse::<Listen>().unwrap_err().what, what, "{text}");
        assert_eq!(text.parse::<Target>().unwrap_err().what, what, "{text}");
    }
}

#[test]
fn sources_and_protocols() {
    for text in ["masquerade", "preserve", "203.0.113.7", "2001:db8::7"] {
        assert_eq!(back::<Source>(text), text);
    }
    for text in ["tcp", "udp", "sctp", "icmp", "icmpv6", "gre", "esp", "1", "0", "255"] {
        assert_eq!(back::<Protocol>(text), text);
    }
    assert_eq!(back::<Protocol>("6"), "tcp");
    assert_ne!("icmp".parse::<Protocol>(), "1".parse(), "the first is ICMPv6 on an IPv6 listen");
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(address: IpAddr, a in 1..=u16::MAX, b in 1..=u16::MAX, with_ports: bool) {
        let ports = with_ports.then_some(Ports { first: a.min(b), last: a.max(b) });
        let target = Target { address, ports, prefix_len: None };
        // Some addresses are refused; none are misread.
        if let Ok(again) = target.to_string().parse::<Target>() {
            prop_assert_eq!(again, target);
        }
    }

    #[test]
    fn no_text_makes_the_parsers_fail_in_another_way_than_by_an_error(text in "[0-9a-f:.\\[\\]/ -]{0,24}|.{0,12}") {
        let _ = text.parse::<Listen>();
        let _ = text.parse::<Target>();
        let _ = text.parse::<Source>();
        let _ = text.parse::<Protocol>();
        let _ = allow_prefix(&text);
    }
}
