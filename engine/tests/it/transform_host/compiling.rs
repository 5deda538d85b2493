//! What is compiled, what is refused, and what is kept of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use eventpulse::{
    config,
    transform::{CompileError, Outcome},
};
use eventpulse_testkit::{eventually, guests};
use sha2::{Digest as _, Sha256};

use super::{Hosted, PAYLOAD};
use crate::harness::PATIENCE;

const WIT: &str = include_str!("../../../../sdk-wasm/wit/transform.wit");

#[tokio::test]
async fn a_core_module_is_made_into_a_component() {
    let hosted = Hosted::new("core");
    let called = hosted.run(guests::core_echo(WIT)).await;
    assert_eq!(called.result, Ok(Outcome::Unchanged));
    assert_eq!(called.log[0].text, "core");
}

#[tokio::test]
async fn every_refusal_has_its_code_and_says_why() {
    let hosted = Hosted::new("refused");
    let garbage: Vec<u8> = Sha256::digest(b"seed").repeat(1000);
    let mut wasm_then_garbage = b"\0asm\x0d\0\x01\0".to_vec();
    wasm_then_garbage.extend_from_slice(&garbage);
    let echo = guests::echo();
    let cases: [(&str, Vec<u8>, &str, &str); 13] = [
        ("nothing", Vec::new(), "not_wasm", "not a WebAssembly module"),
        ("garbage", garbage, "not_wasm", "not a WebAssembly module"),
        ("text", b"(module)".to_vec(), "not_wasm", "wasm-tools parse"),
        ("garbage behind a head", wasm_then_garbage, "does_not_compile", "damaged"),
        ("cut short", echo[..echo.len() - 9].to_vec(), "does_not_compile", "damaged"),
        ("no export", guests::exports_nothing(), "no_transform_export", "exports nothing"),
        ("another type", guests::exports_another_type(), "no_transform_export", "transform"),
        ("no world", guests::core_without_world(), "no_transform_export", "does not carry its world"),
        ("WASI", guests::imports_wasi(), "forbidden_import", "`wasi:cli/environment@0.2.6`"),
        ("WASI 1", guests::imports_wasi_preview1(), "forbidden_import", "fd_write"),
        ("much memory", guests::echo_with_pages(4096), "memory_over_limit", "256 MiB"),
        ("many functions", guests::many_functions(1_000_000), "too_complex", "50000 functions"),
        ("little code, many variables", guests::code_bomb(40_000), "too_complex", "local variables"),
    ];
    for (name, wasm, code, part) in cases {
        let refused = hosted.refused(wasm).await;
        assert_eq!(refused.code, code, "{name}: {refused}");
        assert!(refused.message.contains(part), "{name}: {refused}");
    }
    let large = guests::padded(echo, 50_000_000, 0);
    assert_eq!(hosted.refused(large).await.code, "too_complex");
    assert_eq!(hosted.count("eventpulse_transform_compiles_total{outcome=\"rejected\"}"), 14.0);
    assert_eq!(hosted.run(guests::echo()).await.result, Ok(Outcome::Unchanged));
}

#[tokio::test]
async fn a_compiler_that_takes_too_long_or_too_much_is_stopped() {
    let slow = guests::slow_to_compile(60_000);
    let hosted = Hosted::with("slow", |settings| settings.compile_timeout = Duration::from_secs(1));
    let refused = hosted.refused(slow.clone()).await;
    assert_eq!((refused.code, refused.message.contains("more than 1 s")), ("too_complex", true), "{refused}");
    let hosted = Hosted::with("hungry", |settings| settings.compile_bytes_max = 100 << 20);
    let refused = hosted.refused(slow).await;
    assert_eq!((refused.code, refused.message.contains("100 MiB")), ("too_complex", true), "{refused}");
}

/// A stand-in for the program that compiles.
fn script(hosted: &Path, text: &str) -> PathBuf {
    fs::create_dir_all(hosted).expect("a folder");
    let path = hosted.join("compiler.sh");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("changed");
    path
}

fn scripted(name: &str, text: &str) -> Hosted {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("transform-script-{}-{name}", std::process::id()));
    let program = script(&folder, text);
    Hosted::with(name, |settings| settings.compiler = Some(program))
}

#[tokio::test]
async fn how_the_process_ends_says_whose_fault_it_is() {
    for (text, code) in [
        ("kill -ABRT $$", Some("does_not_compile")),
        ("echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$", Some("too_complex")),
        ("kill -SEGV $$", Some("too_complex")),
        ("exit 101", Some("does_not_compile")),
        ("kill -XCPU $$", Some("too_complex")),
        ("kill -KILL $$", None),
        ("exit 1", None),
        ("echo nonsense", None),
        ("", None),
        ("cat /dev/zero", Some("too_complex")),
    ] {
        let hosted = scripted("ends", text);
        match hosted.host.compile(Bytes::from(guests::echo())).await {
            Err(CompileError::Rejected(rejected)) => {
                assert_eq!(Some(rejected.code), code, "{text}: {rejected}")
            }
            Err(CompileError::Failed(message)) => assert_eq!(None, code, "{text}: {message}"),
            Ok(_) => panic!("{text}: no module came out"),
        }
    }
    let hosted = Hosted::with("missing", |settings| settings.compiler = Some("/nowhere/at/all".into()));
    let error = hosted.host.compile(Bytes::from(guests::echo())).await.err().expect("no module came out");
    assert!(matches!(error, CompileError::Failed(_)), "{error}");
}

#[tokio::test]
async fn a_dropped_compilation_ends_its_process() {
    let hosted = scripted("dropped", "echo $$ > \"$0.pid\"; exec sleep 1000");
    let pid_file = format!("{}.pid", hosted.settings.compiler.as_ref().unwrap().display());
    let _ = fs::remove_file(&pid_file);
    let compilation = hosted.host.compile(Bytes::from(guests::echo()));
    let pid = tokio::select! {
        _ = compilation => panic!("it sleeps"),
        pid = eventually("the process runs", PATIENCE, async || {
            fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse::<u32>().ok()).ok_or_else(|| "no pid".to_owned())
        }) => pid,
    };
    eventually("the process is gone", PATIENCE, async || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.is_empty() || status.contains("zombie") { Ok(()) } else { Err(status) }
    })
    .await;
    // Its turn is free again.
    let refused = hosted.refused(b"no module".to_vec()).await;
    assert_eq!(refused.code, "not_wasm");
}

#[tokio::test]
async fn the_same_module_is_compiled_once() {
    let hosted = Hosted::new("once");
    let wasm = Bytes::from(guests::echo());
    let all: [_; 5] = tokio::join!(
        hosted.host.compile(wasm.clone()),
        hosted.host.compile(wasm.clone()),
        hosted.host.compile(wasm.clone()),
        hosted.host.compile(wasm.clone()),
        hosted.host.compile(wasm.clone()),
    )
    .into();
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(hosted.count("eventpulse_transform_compiles_total{outcome=\"compiled\"}"), 1.0);
    assert_eq!(hosted.count("eventpulse_transform_modules"), 1.0);
    let bad = Bytes::from(guests::exports_nothing());
    let (one, two) = tokio::join!(hosted.host.compile(bad.clone()), hosted.host.compile(bad));
    assert!(one.is_err() && two.is_err());
}

#[tokio::test]
async fn a_compiled_module_is_found_after_a_restart_and_made_again_when_damaged() {
    let hosted = Hosted::new("cache");
    let wasm = guests::copy();
    let hash: [u8; 32] = Sha256::digest(&wasm).into();
    assert!(hosted.host.load(&hash).await.is_none());
    let module = hosted.compile(wasm.clone()).await;
    assert_eq!(*module.hash(), hash);
    let restarted = || {
        let settings =
            config::Transform { compiler: Some("/nowhere/at/all".into()), ..hosted.settings.clone() };
        eventpulse::transform::Host::new(&settings, hosted.metrics.clone()).expect("there is a host")
    };
    let host = restarted();
    let module = host.load(&hash).await.expect("it is in the cache");
    let called = host.call(&module, super::input(1, PAYLOAD)).await;
    assert_eq!(super::payload(&called), PAYLOAD);
    // Asked to compile, it need not.
    assert!(restarted().compile(Bytes::from(wasm.clone())).await.is_ok());

    let files: Vec<PathBuf> = fs::read_dir(&hosted.settings.cache_folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    let [file] = files.as_slice() else { panic!("one file and not {files:?}") };
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(file, &bytes).unwrap();
    let host = restarted();
    assert!(host.load(&hash).await.is_none());
    assert!(!file.exists());
    let again = Hosted::with("cache", |_| {});
    let module = again.compile(wasm).await;
    assert_eq!(super::payload(&again.call(&module, PAYLOAD).await), PAYLOAD);
}

#[tokio::test]
async fn a_folder_that_others_can_write_to_is_no_cache() {
    let hosted = Hosted::new("folder");
    fs::set_permissions(&hosted.settings.cache_folder, fs::Permissions::from_mode(0o777)).unwrap();
    let error = eventpulse::transform::Host::new(&hosted.settings, hosted.metrics.clone()).err();
    assert!(error.expect("there is no host").to_string().contains("can be written to by other users"));
}
