//! See `eventpulse::fuzz::event`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventpulse::fuzz::event(data));
