//! The tables of the file: which keys each has, and which it cannot be without.

use std::ops::Range;

use toml::de::DeValue;

use super::{
    File, FileForward, FileMasquerade, FileNeighbor, FileSteer, FileUplink, LIMITS, TIMEOUTS,
    reader::{Reader, Table},
};
use crate::config::rule::Placed;

const TOP: [&str; 12] = [
    "interfaces",
    "mode",
    "log",
    "mss_clamp",
    "fallback_route",
    "limits",
    "timeouts",
    "forward",
    "masquerade",
    "steer",
    "uplink",
    "neighbor",
];
pub(super) const FORWARD: [&str; 8] = ["name", "listen", "protocol", "to", "source", "allow", "stateless", "mss_clamp"];
const MASQUERADE: [&str; 5] = ["name", "from", "out", "address", "filtering"];
const STEER: [&str; 8] = ["name", "from", "protocol", "port", "interface", "gateway", "uplink", "fallback"];
const UPLINK: [&str; 7] = ["name", "interface", "gateway", "probe", "interval", "fall", "rise"];
const NEIGHBOR: [&str; 5] = ["name", "interface", "for", "via", "answer"];

impl Reader<'_> {
    pub(super) fn document(&mut self, document: &Table<'_>) -> File {
        self.unknown_keys(document, &TOP, "the file");
        let interfaces = self.texts(document, "interfaces", "[\"eth0\"]", false);
        let mode = self.string(document, "mode", "\"auto\"");
        let log = self.string(document, "log", "\"info\"");
        let mss_clamp = self.switch(document, "mss_clamp", "1380");
        let fallback_route = self.bool(document, "fallback_route");
        let mut limits = Vec::new();
        if let Some(table) = self.table(document, "limits", &LIMITS) {
            limits.extend(LIMITS.into_iter().filter_map(|key| Some((key, self.integer(table, key)?))));
        }
        let mut timeouts = Vec::new();
        if let Some(table) = self.table(document, "timeouts", &TIMEOUTS) {
            timeouts.extend(TIMEOUTS.into_iter().filter_map(|key| Some((key, self.string(table, key, "\"300s\"")?))));
        }
        let forwards = self.list(document, "forward");
        let forwards = forwards.into_iter().map(|(table, span)| self.forward(table, &span)).collect();
        let masquerades = self.list(document, "masquerade");
        let masquerades = masquerades.into_iter().map(|(table, span)| self.masquerade(table, &span)).collect();
        let steers = self.list(document, "steer");
        let steers = steers.into_iter().map(|(table, span)| self.steer(table, &span)).collect();
        let uplinks = self.list(document, "uplink");
        let uplinks = uplinks.into_iter().map(|(table, span)| self.uplink(table, &span)).collect();
        let neighbors = self.list(document, "neighbor");
        let neighbors = neighbors.into_iter().map(|(table, span)| self.neighbor(table, &span)).collect();
        File {
            interfaces: interfaces.map(|list| list.value).unwrap_or_default(),
            mode,
            log,
            mss_clamp,
            fallback_route,
            limits,
            timeouts,
            forwards,
            masquerades,
            steers,
            uplinks,
            neighbors,
        }
    }

    fn forward(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileForward {
        self.unknown_keys(table, &FORWARD, "[[forward]]");
        let forward = FileForward {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"web\""),
            listen: self.texts(table, "listen", "\"203.0.113.7:80\"", false),
            protocol: self.texts(table, "protocol", "\"tcp\"", true),
            to: self.texts(table, "to", "\"10.8.0.2:8080\"", false),
            source: self.string(table, "source", "\"preserve\""),
            allow: self.texts(table, "allow", "[\"198.51.100.0/24\"]", false),
            stateless: self.bool(table, "stateless"),
            mss_clamp: self.switch(table, "mss_clamp", "1380"),
        };
        for (key, example) in [("name", "web"), ("listen", "203.0.113.7:80"), ("to", "10.8.0.2:8080")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", forward.label());
                self.report.error(forward.place, what, format!("{key} = \"{example}\""));
            }
        }
        forward
    }

    fn masquerade(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileMasquerade {
        self.unknown_keys(table, &MASQUERADE, "[[masquerade]]");
        let masquerade = FileMasquerade {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"home\""),
            from: self.texts(table, "from", "\"10.8.0.0/24\"", false),
            out: self.string(table, "out", "\"eth0\""),
            address: self.texts(table, "address", "\"203.0.113.7\"", false),
            filtering: self.string(table, "filtering", "\"address\""),
        };
        if !table.contains_key("from") {
            let what = format!("{}`from` is missing", masquerade.label());
            self.report.error(masquerade.place, what, "from = \"10.8.0.0/24\"");
        }
        if !table.contains_key("out") && !table.contains_key("address") {
            let what = format!("{}neither `out` nor `address` is there", masquerade.label());
            let hint = "out = \"eth0\", for the address that eth0 has, or address = \"203.0.113.7\"";
            self.report.error(masquerade.place, what, hint);
        }
        masquerade
    }

    fn steer(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileSteer {
        self.unknown_keys(table, &STEER, "[[steer]]");
        let steer = FileSteer {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"line-b\""),
            from: self.texts(table, "from", "\"192.0.2.123\"", false),
            protocol: self.texts(table, "protocol", "\"tcp\"", true),
            port: self.port(table),
            interface: self.string(table, "interface", "\"ppp0\""),
            gateway: self.texts(table, "gateway", "\"192.0.2.1\"", false),
            uplink: self.string(table, "uplink", "\"fibre\""),
            fallback: self.texts(table, "fallback", "\"dsl\"", false),
        };
        let line = if table.contains_key("uplink") { "uplink" } else { "interface" };
        for (key, example) in [("from", "192.0.2.123"), (line, "ppp0")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", steer.label());
                self.report.error(steer.place, what, format!("{key} = \"{example}\""));
            }
        }
        steer
    }

    fn uplink(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileUplink {
        self.unknown_keys(table, &UPLINK, "[[uplink]]");
        let uplink = FileUplink {
            name: self.string(table, "name", "\"fibre\""),
            interface: self.string(table, "interface", "\"ppp0\""),
            gateway: self.texts(table, "gateway", "\"192.0.2.1\"", false),
            probe: self.texts(table, "probe", "\"gateway\"", false),
            interval: self.string(table, "interval", "\"1s\""),
            fall: self.integer(table, "fall"),
            rise: self.integer(table, "rise"),
        };
        for (key, example) in [("name", "fibre"), ("interface", "ppp0")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", uplink.label());
                self.report.error(Some(self.place(span)), what, format!("{key} = \"{example}\""));
            }
        }
        uplink
    }

    /// One port as a number or a text, or a range.
    fn port(&mut self, table: &Table<'_>) -> Option<Placed<String>> {
        let value = table.get("port")?;
        let text = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().to_owned(),
            DeValue::String(text) => text.clone().into_owned(),
            _ => {
                self.wrong_type("port", value, "a port or a range of ports", "443");
                return None;
            }
        };
        Some(self.placed(text, &value.span()))
    }

    fn neighbor(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileNeighbor {
        self.unknown_keys(table, &NEIGHBOR, "[[neighbor]]");
        let neighbor = FileNeighbor {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"home\""),
            interface: self.string(table, "interface", "\"eth0\""),
            addresses: self.texts(table, "for", "\"2001:db8:0:0:8::/78\"", false),
            via: self.string(table, "via", "\"tap0\""),
            answer: self.string(table, "answer", "\"always\""),
        };
        for (key, example) in [("interface", "eth0"), ("for", "2001:db8:0:0:8::/78"), ("via", "tap0")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", neighbor.label());
                self.report.error(neighbor.place, what, format!("{key} = \"{example}\""));
            }
        }
        neighbor
    }
}
