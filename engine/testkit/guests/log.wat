;; One line of each level, then the event as it came.
(data (i32.const 1024) "one line")
;; body
(call $log (i32.const 0) (i32.const 1024) (i32.const 8))
(call $log (i32.const 1) (i32.const 1024) (i32.const 8))
(call $log (i32.const 2) (i32.const 1024) (i32.const 8))
(call $log (i32.const 3) (i32.const 1024) (i32.const 8))
(call $unchanged)
