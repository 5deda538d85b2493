//! See `eventpulse::fuzz::retry_after`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventpulse::fuzz::retry_after(data));
