;; As a panic hook does: says why, then ends.
(data (i32.const 1024) "panicked at src/lib.rs:7: no amount")
;; body
(call $log (i32.const 3) (i32.const 1024) (i32.const 35))
(unreachable)
