//! libFuzzer on [`forwarder_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forwarder_fuzz::config::bytes(bytes));
