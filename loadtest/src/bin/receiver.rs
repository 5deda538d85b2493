//! The receiver as a program: `load-receiver --port 0` prints where it listens.

use clap::Parser;

#[derive(Parser)]
struct Options {
    /// 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    eventpulse_loadtest::receiver::serve(Options::parse().port, |address| println!("http://{address}")).await
}
