//! See `eventpulse::fuzz::address`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventpulse::fuzz::address(data));
