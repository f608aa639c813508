//! What people have two lines for: the situations of `examples/`, with the very files, real daemons, and providers that
//! refuse what is not theirs. Each works, and does not without its `[[steer]]`.

mod home_behind_a_vps;
mod internet;
mod two_lines_at_home;
mod two_nat_boxes;
mod vps_with_two_addresses;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use forwarder_lab::{Host, Shape, TcpServer, Transfer, silence};

use crate::forwarder::Forwarder;
use crate::setting::{Mode, Setting};

/// Makes, of each function that takes a `Mode`, one test for either.
macro_rules! in_both_modes {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use crate::setting::Mode;
            #[test]
            fn native() {
                super::$name(Mode::Native);
            }
            #[test]
            fn tc() {
                super::$name(Mode::Tc);
            }
        }
    )* };
}
use in_both_modes;

const SIZE: u64 = 1_000_000;

/// A file of `examples/`.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// Loads a file of `examples/` as it is, for the interfaces that it names.
fn load(forwarder: &mut Forwarder, mode: Mode, name: &str) {
    forwarder.config = example(name);
    let mode = Setting { mode, shape: Shape::TwoArmed };
    forwarder.succeed(&forwarder.load_arguments(mode));
}

/// A transfer both ways; the client as the server saw it.
fn transfer(client: &Host, from: Option<SocketAddr>, to: SocketAddr) -> anyhow::Result<SocketAddr> {
    let transfer = Transfer::to(to).upload(SIZE).download(SIZE);
    let transfer = from.map_or(transfer, |from| transfer.from(from));
    Ok(transfer.run(client)?.seen_as)
}

/// Asserts that no connection comes about: nothing comes back, whatever is there.
#[track_caller]
fn assert_lost(client: &Host, to: SocketAddr) {
    let connected = client.enter(|| TcpStream::connect_timeout(&to, silence())).unwrap();
    let error = connected.expect_err("it answers");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}: {error}");
}

/// A server that is there as long as the value lives.
fn serve(host: &Host, at: SocketAddr) -> TcpServer {
    TcpServer::start(host, at).unwrap()
}
