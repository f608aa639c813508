//! A VPS with two interfaces and two public addresses, each forwarded to another backend elsewhere on the internet.

use std::fs;

use forwarder_lab::{EchoStream, Family, Host, Lab, Spawned};

use super::internet::{Internet, at, customer, default_by, elsewhere};
use super::{assert_lost, in_both_modes, load, serve, transfer};
use crate::forwarder::Forwarder;
use crate::setting::Mode;

in_both_modes!(each_address_answers_by_its_interface);

fn each_address_answers_by_its_interface(mode: Mode) {
    let net = Internet::new("twoaddr", mode);
    let [client, shop, forum] = [("client", 2), ("shop", 10), ("forum", 14)].map(|(name, n)| net.host(name, n));
    let vps = net.lab.host("vps").unwrap();
    for (line, interface) in ["eth0", "eth1"].into_iter().enumerate() {
        net.connect(line, &net.provider(line), &vps, interface, 7);
    }
    let mut forwarder = Forwarder::named(&net.lab, &vps, "pins");
    default_by(&vps, 0);
    load(&mut forwarder, mode, "vps-with-two-addresses/forwarder.toml");
    for default in [0, 1] {
        default_by(&vps, default);
        for family in Family::ALL {
            for (line, backend, number) in [(0, &shop, 10), (1, &forum, 14)] {
                let _server = serve(backend, at(elsewhere(family, number), 8443));
                let listen = at(customer(line, family, 7), 443);
                let seen = transfer(&client, None, listen).unwrap_or_else(|error| {
                    panic!("default route by line {default}, {listen}: {error:#}\n{:#?}", forwarder.stats())
                });
                assert_eq!(seen.ip(), listen.ip());
            }
            // Both lines at the same time.
            let _servers =
                [(&shop, 10), (&forum, 14)].map(|(host, number)| serve(host, at(elsewhere(family, number), 8443)));
            let mut open =
                [0, 1].map(|line| EchoStream::connect(&client, at(customer(line, family, 7), 443), None).unwrap());
            for _ in 0..5 {
                for stream in &mut open {
                    stream.exchange(b"both lines").unwrap();
                }
            }
        }
    }
    // An ordinary web server on each.
    let web = [(&shop, "shop"), (&forum, "forum")].map(|(host, page)| web_server(&net.lab, host, page));
    for family in Family::ALL {
        for (line, page) in [(0, "shop"), (1, "forum")] {
            let url = format!("http://{}/page", at(customer(line, family, 7), 443));
            let seen = client.run(&["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &url]).unwrap();
            assert_eq!(seen, page);
        }
    }
    drop(web);
    // The default route is by the second: without its steer, the first is lost.
    forwarder.succeed(&["remove", "first"]);
    for family in Family::ALL {
        let _server = serve(&shop, at(elsewhere(family, 10), 8443));
        assert_lost(&client, at(customer(0, family, 7), 443));
    }
}

/// Serves `/page`, which says whose it is.
fn web_server(lab: &Lab, host: &Host, page: &str) -> Spawned {
    let directory = std::env::temp_dir().join(format!("{}-{page}", lab.id()));
    lab.delete_at_end(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("page"), page).unwrap();
    let directory = directory.to_str().unwrap();
    let argv = ["python3", "-u", "-m", "http.server", "--bind", "::", "--directory", directory, "8443"];
    let server = host.spawn(&argv).unwrap();
    server.wait_for_line(|line| line.starts_with("Serving HTTP")).unwrap();
    server
}
