//! Modules for tests and benches: what webhooks' owners may upload, honest and hostile, as WebAssembly text and a few lines of
//! binary. They need no toolchain.

use std::fmt::Write as _;

const FRAME: &str = include_str!("../guests/frame.wat");

/// A guest's own text, between the frame's helpers: first its items, then, after a line `;; body`, what `transform` does.
fn component(text: &str, pages: u32) -> Vec<u8> {
    let (items, body) = text.split_once(";; body").unwrap_or(("", text));
    let text =
        FRAME.replace("{{pages}}", &pages.to_string()).replace("{{items}}", items).replace("{{body}}", body);
    parse(&text)
}

fn parse(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("a guest is no WebAssembly: {error}"))
}

macro_rules! guests {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub fn $name() -> Vec<u8> {
            component(include_str!(concat!("../guests/", stringify!($name), ".wat")), 1)
        })*
    };
}

guests! {
    /// Unchanged.
    echo;
    /// The payload's own bytes as a new payload.
    copy;
    /// Drops events with an odd id, for the reason `odd id`.
    drop_odd;
    /// Every digit from 1 to 8 becomes the next one.
    digits;
    /// The value of the first setting, as payload.
    from_config;
    /// The body `hello` as `text/plain; charset=utf-8` with `x-from: a module`.
    body;
    /// A body with a header `Host`.
    bad_header;
    /// A body with a header whose value has a line break.
    bad_header_value;
    /// An error: `no amount`, a NUL, ` given`.
    error;
    /// `one line` at each level, then unchanged.
    log;
    /// Ten thousand lines, a long one, and `the last one`, then unchanged.
    log_flood;
    /// Logs where it panicked, then traps.
    log_then_trap;
    endless_loop;
    /// Grows its memory until it cannot, then traps.
    memory_bomb;
    /// Asks for 2 GiB, does not get it, and is well: unchanged.
    memory_shy;
    /// Grows a table until it cannot; traps if that is beyond 20,000 elements.
    table_bomb;
    /// Calls itself without end.
    recursion;
    trap;
    /// A start function that never ends.
    start_loop;
    /// A payload of 2 MiB, valid JSON.
    huge_output;
    /// A body with 100,000 headers of 60,000 bytes, which all are the same bytes in its memory.
    many_headers;
    /// A payload outside of its memory.
    wild_pointer;
    /// The payload `{oops`.
    not_json;
    /// A payload that is not UTF-8.
    not_text;
    /// `true` if memory, a new page and a global were as they were made, `false` if not; then fills them with the payload.
    remember;
    /// A string of three digits: how often this instance was called. Traps on a payload that begins with `!`.
    count;
}

/// Unchanged, after so many rounds of a multiplication that waits for the one before. A million takes about 1.5 ms.
pub fn spin(rounds: u32) -> Vec<u8> {
    component(&include_str!("../guests/spin.wat").replace("{{rounds}}", &rounds.to_string()), 1)
}

/// Unchanged, after about 45 ms of CPU time.
pub fn spin_45_ms() -> Vec<u8> {
    spin(30_000_000)
}

/// As [`echo`], with so many pages of 64 KiB from the start.
pub fn echo_with_pages(pages: u32) -> Vec<u8> {
    component(include_str!("../guests/echo.wat"), pages)
}

/// A module of another size: the same one with so many bytes of nothing at its end, unlike for each `seed`.
pub fn padded(mut wasm: Vec<u8>, bytes: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![3, b'p', b'a', b'd'];
    content.extend_from_slice(&seed.to_le_bytes());
    content.resize(content.len() + bytes, 0);
    section(&mut wasm, 0, &content);
    wasm
}

/// A component that is well but for the interface it imports, which is what standard libraries for WASI import.
pub fn imports_wasi() -> Vec<u8> {
    let wasi = r#"(import "wasi:cli/environment@0.2.6" (instance
        (export "get-environment" (func (result (list (tuple string string)))))))"#;
    let text = FRAME
        .replace("{{pages}}", "1")
        .replace("{{items}}", "")
        .replace("{{body}}", include_str!("../guests/echo.wat"))
        .replacen("(component", &format!("(component {wasi}"), 1);
    parse(&text)
}

/// A core module for WASI, as compilers for it write one.
pub fn imports_wasi_preview1() -> Vec<u8> {
    parse(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start")))"#,
    )
}

/// A component that exports nothing.
pub fn exports_nothing() -> Vec<u8> {
    parse("(component)")
}

/// A component whose `transform` takes and gives other things.
pub fn exports_another_type() -> Vec<u8> {
    parse(
        r#"(component
            (core module $m (func (export "f") (param i32) (result i32) (local.get 0)))
            (core instance $i (instantiate $m))
            (func (export "transform") (param "a" u32) (result u32) (canon lift (core func $i "f"))))"#,
    )
}

/// A core module without the section that says which world it is for.
pub fn core_without_world() -> Vec<u8> {
    parse(include_str!("../guests/core_echo.wat"))
}

/// A core module as compilers write one: unchanged, and logs `core`.
pub fn core_echo(wit: &str) -> Vec<u8> {
    let mut wasm = core_without_world();
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("transform.wit", wit).expect("the contract is WIT");
    let world = resolve.select_world(&[package], Some("transformer")).expect("the contract has the world");
    wit_component::embed_component_metadata(&mut wasm, &resolve, world, wit_component::StringEncoding::UTF8)
        .expect("the world can be embedded");
    wasm
}

/// A core module with so many functions that do nothing.
pub fn many_functions(count: u32) -> Vec<u8> {
    core_of(count, &[2, 0, 0x0b])
}

/// Functions of a few bytes that each have fifty thousand locals: little to upload, much to compile.
pub fn code_bomb(count: u32) -> Vec<u8> {
    let mut body = vec![1];
    leb(&mut body, 50_000);
    body.extend_from_slice(&[0x7e, 0x0b]);
    let mut sized = Vec::new();
    leb(&mut sized, u32::try_from(body.len()).expect("short"));
    sized.extend_from_slice(&body);
    core_of(count, &sized)
}

/// A module that is short and takes a compiler long: one function of that many nested blocks around a computation.
pub fn slow_to_compile(rounds: usize) -> Vec<u8> {
    let mut text = String::from("(module (memory 1) (func (param i64) (result i64)\n");
    for n in 0..rounds {
        let _ = writeln!(
            text,
            "(block (br_if 0 (i32.wrap_i64 (local.get 0))) (local.set 0 (i64.add (i64.load (i32.const {n})) \
             (i64.mul (local.get 0) (i64.const {n})))))"
        );
    }
    text.push_str("(local.get 0)))");
    parse(&text)
}

/// A core module of `count` functions of type `() -> ()` with the same body.
fn core_of(count: u32, body: &[u8]) -> Vec<u8> {
    let mut wasm = b"\0asm\x01\0\0\0".to_vec();
    section(&mut wasm, 1, &[1, 0x60, 0, 0]);
    let mut content = Vec::new();
    leb(&mut content, count);
    content.resize(content.len() + count as usize, 0);
    section(&mut wasm, 3, &content);
    content.clear();
    leb(&mut content, count);
    for _ in 0..count {
        content.extend_from_slice(body);
    }
    section(&mut wasm, 10, &content);
    wasm
}

fn section(wasm: &mut Vec<u8>, id: u8, content: &[u8]) {
    wasm.push(id);
    leb(wasm, u32::try_from(content.len()).expect("a section has a length of 32 bits"));
    wasm.extend_from_slice(content);
}

/// LEB128, as WebAssembly writes its numbers.
fn leb(out: &mut Vec<u8>, mut n: u32) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push((n & 0x7f) as u8);
}
