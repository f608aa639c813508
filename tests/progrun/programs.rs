//! The kernel's verifier takes every program.

use aya::programs::Program;

use crate::world;

#[test]
fn every_program_loads() {
    world::with("", |world| {
        let mut seen = vec![];
        for (name, program) in world.bpf().programs_mut() {
            let info = match program {
                Program::Xdp(xdp) => {
                    // Some are loaded already.
                    if xdp.fd().is_err() {
                        xdp.load().unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                    xdp.info()
                }
                Program::SchedClassifier(tc) => {
                    if tc.fd().is_err() {
                        tc.load().unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                    tc.info()
                }
                Program::RawTracePoint(tracepoint) => {
                    if tracepoint.fd().is_err() {
                        tracepoint.load().unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                    tracepoint.info()
                }
                _ => panic!("{name} is of another type"),
            };
            let info = info.unwrap();
            let (verified, size) = (info.verified_instruction_count(), info.size_translated());
            println!("{name}: {} instructions verified, {} bytes", verified.unwrap(), size.unwrap());
            seen.push(name.to_owned());
        }
        seen.sort();
        assert_eq!(
            seen,
            [
                "forwarder_devmap_xmit",
                "forwarder_egress",
                "forwarder_egress_l3",
                "forwarder_pass",
                "forwarder_redirect_err",
                "forwarder_sweep",
                "forwarder_tc",
                "forwarder_tc_l3",
                "forwarder_xdp"
            ]
        );
    });
}
