;; Calls itself for ever.
(func $deeper (param $n i64) (result i64)
  (i64.add (local.get $n) (call $deeper (i64.add (local.get $n) (i64.const 1)))))
;; body
(i64.store (i32.const 1024) (call $deeper (i64.const 0)))
(call $unchanged)
