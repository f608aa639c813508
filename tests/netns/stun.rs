//! A STUN client says how a `[[masquerade]]` looks to programs that find each other by it: coturn's
//! `turnutils_natdiscovery` (RFC 5780), against coturn's server at two addresses.

use forwarder_lab::Family;

use crate::config::masquerade;
use crate::masquerade::{inside, outside, start};
use crate::setting::Setting;

const PORT: u16 = 3478;

/// One mapping for every remote end, whatever the filtering; and the filtering that the configuration says.
#[test]
fn a_client_sees_mapping_and_filtering_as_configured() {
    /// The filtering, its host, and what the client says of it.
    const FILTERINGS: [(&str, u8, &str); 3] = [
        ("endpoint", 20, "NAT with Endpoint Independent Filtering!"),
        ("address", 21, "NAT with Address Dependent Filtering!"),
        ("address+port", 22, "NAT with Address and Port Dependent Filtering!"),
    ];
    let config: String = FILTERINGS
        .into_iter()
        .map(|(filtering, n, _)| {
            let from = format!("[\"10.8.0.{n}\", \"fd08::{n}\"]");
            masquerade(&format!("host{n}"), from, "eth0", &format!("filtering = \"{filtering}\""))
        })
        .collect();
    for setting in [Setting::NATIVE_TWO_ARMED, Setting::TC_ONE_ARMED] {
        let test = start("stun", setting, &config);
        let (net, forwarder) = (&test.net, &test.forwarder);
        for family in Family::ALL {
            let [one, two] = [2, 3].map(|n| outside(family, n).to_string());
            let port = PORT.to_string();
            let server = net
                .client
                .spawn(&[
                    "turnserver",
                    "-n",
                    "--stun-only",
                    "--no-auth",
                    "--no-cli",
                    "--no-tls",
                    "--no-dtls",
                    "--no-tcp",
                    "--log-file",
                    "stdout",
                    "--simple-log",
                    "--pidfile",
                    "/dev/null",
                    "--userdb",
                    "/dev/null",
                    "--listening-port",
                    &port,
                    "-L",
                    &one,
                    "-L",
                    &two,
                ])
                .unwrap();
            server.wait_for_line(|line| line.contains("admin thread")).unwrap();
            for (filtering, n, expected) in FILTERINGS {
                let host = inside(family, n).to_string();
                let said =
                    net.home.run(&["turnutils_natdiscovery", "-m", "-f", "-L", &host, "-p", &port, &one]).unwrap();
                let about = format!("{family:?}, {filtering}:\n{said}\n{:#?}", forwarder.stats());
                assert!(said.contains("NAT with Endpoint Independent Mapping!"), "{about}");
                assert!(said.contains(expected), "{about}");
                assert!(said.contains(&net.public_address(family).to_string()), "{about}");
            }
        }
    }
}
