//! realm's TCP relay, for the bench: `forwarder-bench-realm LISTEN REMOTE`.
//!
//! realm itself is not on crates.io, but `realm_core` is, which does all of its work. This starts it as realm does: on a
//! multi-threaded runtime, with realm's default options.

use std::env;
use std::error::Error;
use std::net::SocketAddr;

use realm_core::endpoint::{BindOpts, ConnectOpts, Endpoint, RemoteAddr};
use realm_core::tcp::run_tcp;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [listen, remote] = match arguments.as_slice() {
        [option] if option == "--version" => {
            println!("realm_core 0.5.1");
            return Ok(());
        }
        [listen, remote] => [listen.parse::<SocketAddr>()?, remote.parse()?],
        _ => return Err("usage: forwarder-bench-realm LISTEN REMOTE".into()),
    };
    let endpoint = Endpoint {
        laddr: listen,
        raddr: RemoteAddr::SocketAddr(remote),
        bind_opts: BindOpts::default(),
        conn_opts: ConnectOpts { connect_timeout: 5, tcp_keepalive: 15, tcp_keepalive_probe: 3, ..ConnectOpts::default() },
        extra_raddrs: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run_tcp(endpoint))?;
    Ok(())
}
