//! See `eventpulse::fuzz::reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventpulse::fuzz::reply(data));
