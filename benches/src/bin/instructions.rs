//! Counts the instructions of the hot path's functions under callgrind, and compares them with the record.
//!
//! `scripts/instructions` builds and runs it. It starts itself a second time under valgrind, as `count`.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use eventpulse_bench::{
    hot,
    instructions::{CALLS, Count, Record, WARM_UP, compare, totals},
};

/// The function below, as callgrind calls it. `--dump-after` takes no pattern.
const COUNTED: &str = "instructions::counted_calls";

/// Makes the C library take the same `memcpy` on each x86 processor. Of its own choice it would take what that one has,
/// and a copy of 4 KB is 300 instructions more or less.
const PLAIN: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-ERMS";

/// Everything within is counted, and nothing else. It has one symbol for all functions, hence not generic.
#[inline(never)]
fn counted_calls(call: &dyn Fn()) {
    for _ in 0..CALLS {
        call();
    }
}

/// The part that runs under valgrind. Prints the names in the order in which they are counted.
fn count() {
    for function in hot::all() {
        for _ in 0..WARM_UP {
            (function.call)();
        }
        counted_calls(&*function.call);
        println!("{}", function.name);
    }
}

fn run_callgrind() -> Result<Vec<Count>, String> {
    let out = env::temp_dir().join(format!("eventpulse-instructions-{}", std::process::id()));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--collect-atstart=no", "--combine-dumps=yes"]);
    valgrind.arg(format!("--toggle-collect={COUNTED}")).arg(format!("--dump-after={COUNTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(env::current_exe().map_err(|e| e.to_string())?).arg("count");
    // The environment lies on the stack, and so moves everything else there.
    valgrind.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("GLIBC_TUNABLES", PLAIN);
    let ran =
        valgrind.stderr(Stdio::inherit()).output().map_err(|e| format!("valgrind does not start: {e}"))?;
    let output = fs::read_to_string(&out);
    let _ = fs::remove_file(&out);
    if !ran.status.success() {
        return Err(format!("valgrind ended with {}", ran.status));
    }
    let totals = totals(&output.map_err(|e| format!("callgrind wrote nothing: {e}"))?, COUNTED)?;
    let names = String::from_utf8(ran.stdout).map_err(|e| e.to_string())?;
    let names: Vec<&str> = names.lines().collect();
    if names.len() != totals.len() {
        return Err(format!("{} functions ran and {} were counted", names.len(), totals.len()));
    }
    Ok(names.iter().zip(totals).map(|(name, total)| ((*name).to_owned(), total / CALLS)).collect())
}

/// Whether all is well.
fn check(file: &Path, strict: bool) -> Result<bool, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let record = Record::parse(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    let report = compare(&record, &run_callgrind()?);
    for line in &report.lines {
        println!("{line}");
    }
    for hint in &report.hints {
        println!("much better than on record, so refresh it: {hint}");
    }
    for fault in &report.faults {
        eprintln!("{}: {fault}", if strict { "FAILED" } else { "differs" });
    }
    if !report.faults.is_empty() || !report.hints.is_empty() {
        println!("to put these counts on record: scripts/instructions --record");
    }
    Ok(report.faults.is_empty() || !strict)
}

fn record(file: &Path) -> Result<bool, String> {
    let record = Record { architecture: env::consts::ARCH.to_owned(), counts: run_callgrind()? };
    let text = record.render();
    print!("{text}");
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(true)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["count"] => {
            count();
            Ok(true)
        }
        ["check", file] => check(file.as_ref(), true),
        ["show", file] => check(file.as_ref(), false),
        ["record", file] => record(file.as_ref()),
        _ => Err("usage: instructions check|show|record FILE, or count under callgrind".to_owned()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
