;; A header whose value would begin another one.
(data (i32.const 1024) "text/plain")
(data (i32.const 1072) "x-a")
(data (i32.const 1088) "a\0d\0ab: c")
(data (i32.const 1104) "\30\04\00\00\03\00\00\00\40\04\00\00\07\00\00\00")
;; body
(call $body (i32.const 1024) (i32.const 10) (i32.const 1024) (i32.const 10) (i32.const 1104) (i32.const 1))
