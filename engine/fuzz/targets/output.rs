//! See `eventpulse::fuzz::output`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventpulse::fuzz::output(data));
