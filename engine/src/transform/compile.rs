//! Compiling a module, as a process of its own does it: `eventpulse compile-transform`, which nobody types.
//!
//! A module can make a compiler take much memory or time, or find its next bug. So the process has limits of its own, no secrets
//! in its environment, and dies with its parent. On stdin comes a line with an [`Order`], then the module; on stdout goes a
//! line with a [`Verdict`], then the machine code.

use std::{
    fs,
    io::{self, BufRead as _, Read as _, Write as _},
    process::ExitCode,
};

use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};
use serde::{Deserialize, Serialize};
use wasmtime::Engine;
use wit_component::ComponentEncoder;

use super::{
    Rejected,
    check::{Form, check, rejected},
    engines::{Class, for_compiling},
};

/// Bytes of the line with the order.
const ORDER_BYTES_MAX: u64 = 1 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) class: Class,
    pub(super) memory_bytes_max: usize,
    pub(super) address_bytes_max: usize,
    pub(super) cpu_seconds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Compiled,
    Rejected { code: String, message: String },
}

/// The whole of the subcommand.
pub fn compile_in_this_process() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    stdin.by_ref().take(ORDER_BYTES_MAX).read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    limit(&order)?;
    let mut wasm = Vec::new();
    stdin.read_to_end(&mut wasm)?;
    let (verdict, artefact) = match compile(&wasm, &order) {
        Ok(artefact) => (Verdict::Compiled, artefact),
        Err(Rejected { code, message }) => (Verdict::Rejected { code: code.to_owned(), message }, Vec::new()),
    };
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &verdict)?;
    stdout.write_all(b"\n")?;
    stdout.write_all(&artefact)?;
    stdout.flush()
}

fn limit(order: &Order) -> io::Result<()> {
    let set = |resource, soft: u64, hard: u64| {
        setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) }).map_err(io::Error::from)
    };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set(Resource::Core, 0, 0)?;
    set(Resource::As, order.address_bytes_max as u64, order.address_bytes_max as u64)?;
    set(Resource::Cpu, order.cpu_seconds, order.cpu_seconds + 1)?;
    // Deliveries come first. That it is not allowed is no reason not to compile, nor is it with the next one.
    let _ = nice(10);
    // Should the machine run out of memory, this is what it may kill.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

fn compile(wasm: &[u8], order: &Order) -> Result<Vec<u8>, Rejected> {
    let failed = |error: &dyn std::fmt::Display| {
        rejected("does_not_compile", format!("the module does not compile: {error}"))
    };
    let component;
    let wasm = match check(wasm, order.class, order.memory_bytes_max)? {
        Form::Component => wasm,
        Form::CoreModule => {
            component = ComponentEncoder::default()
                .module(wasm)
                .and_then(|encoder| encoder.validate(true).encode())
                .map_err(|error| failed(&format!("{error:#}")))?;
            check(&component, order.class, order.memory_bytes_max)?;
            &component
        }
    };
    let engine = Engine::new(&for_compiling(order.class)).map_err(|error| failed(&format!("{error:#}")))?;
    engine.precompile_component(wasm).map_err(|error| failed(&format!("{error:#}")))
}
