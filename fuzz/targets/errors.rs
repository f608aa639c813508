//! libFuzzer on [`forwarder_common::fuzz::errors`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    forwarder_common::fuzz::errors(bytes);
});
