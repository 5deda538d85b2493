;; A core module as `cargo build --target wasm32-unknown-unknown` writes it, but for the section with its world.
(module
  (import "$root" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 1024) "core")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
  (func (export "transform") (param i32 i32 i32 i32 i32 i32 i64 i32 i32 i32 i32) (result i32)
    (call $log (i32.const 1) (i32.const 1024) (i32.const 4))
    (i32.store8 (i32.const 16) (i32.const 0))
    (i32.store8 (i32.const 20) (i32.const 0))
    (i32.const 16)))
