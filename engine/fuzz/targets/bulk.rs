//! See `eventpulse::fuzz::bulk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventpulse::fuzz::bulk(data));
