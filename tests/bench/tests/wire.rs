//! The bench between two machines: what one sends, the other counts, and a router between them does not change that.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use anyhow::{Context as _, Result};
use forwarder_lab::{Family, Offloads, Spawned, Topology, patience};

const BENCH: &str = env!("CARGO_BIN_EXE_forwarder-bench");

/// How many frames the line that begins with this word says.
fn frames(line: &str) -> Result<u64> {
    line.split_whitespace().nth(1).context("no number")?.parse().context("no number")
}

#[test]
fn what_is_sent_is_counted() -> Result<()> {
    for family in Family::ALL {
        let net = Topology::two_armed("wire", Offloads::Native)?;
        net.forwarder.enable_kernel_forwarding()?;
        let start = |host: &forwarder_lab::Host, arguments: &[&str]| {
            let mut command = host.command(BENCH);
            command.args(["--forwarder", "none", "--iface", "eth0"]).args(arguments);
            Spawned::start(command)
        };
        let backend = net.backend(family, 9000).to_string();
        // Longer than it is sent to; whoever sends waits for it to begin.
        let mut sink = start(&net.home, &["--sink", "--port", "9000", "--seconds", "4"])?;
        sink.wait_for_line(|line| line.starts_with("counting"))?;
        let mut generator = start(&net.client, &["--peer", &backend, "--seconds", "1", "--rate", "20000"])?;
        let sent = frames(&generator.wait_for_line(|line| line.starts_with("sent "))?)?;
        assert!(generator.wait()?.success(), "{}", generator.output());
        let received = frames(&sink.wait_for_line(|line| line.starts_with("received "))?)?;
        assert!(sink.wait()?.success(), "{}", sink.output());
        // The first wait for the neighbour to be found, in a queue that holds some of them.
        assert!(received > sent / 2 && received <= sent, "of {sent} frames {received} arrived in {:?}", patience());
    }
    Ok(())
}

#[test]
fn nobody_there() -> Result<()> {
    let net = Topology::two_armed("wire", Offloads::Native)?;
    let mut command = net.home.command(BENCH);
    command.args(["--forwarder", "none", "--iface", "eth0", "--sink", "--port", "9000", "--seconds", "1"]);
    let mut sink = Spawned::start(command)?;
    assert!(!sink.wait()?.success(), "a sink that counted nothing is content: {}", sink.output());
    assert!(sink.output().contains("nothing arrived"), "{}", sink.output());
    Ok(())
}
