//! Lines that stand with an attempt if it fails, and in the answer of a dry run. The host cuts long ones.
//!
//! ```
//! use eventpulse_transform::log;
//!
//! log::info("seen");
//! log::warn(format_args!("{} items left out", 3));
//! ```

use std::fmt::Display;

/// Writes a line for whoever looks for a fault.
pub fn debug(message: impl Display) {
    write(Level::Debug, &message);
}

/// Writes a line that tells what was done.
pub fn info(message: impl Display) {
    write(Level::Info, &message);
}

/// Writes a line about something that should not be.
pub fn warn(message: impl Display) {
    write(Level::Warn, &message);
}

/// Writes a line about what went wrong.
pub fn error(message: impl Display) {
    write(Level::Error, &message);
}

#[derive(Clone, Copy, Debug)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[cfg(target_arch = "wasm32")]
fn write(level: Level, message: &dyn Display) {
    use crate::bindings;

    let level = match level {
        Level::Debug => bindings::Level::Debug,
        Level::Info => bindings::Level::Info,
        Level::Warn => bindings::Level::Warn,
        Level::Error => bindings::Level::Error,
    };
    bindings::log(level, &message.to_string());
}

/// In a native test there is no host; cargo shows the lines of tests that fail.
#[cfg(not(target_arch = "wasm32"))]
fn write(level: Level, message: &dyn Display) {
    eprintln!("{level:?}: {message}");
}
