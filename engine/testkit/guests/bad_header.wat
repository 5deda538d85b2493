;; A header that is not a module's to set.
(data (i32.const 1024) "text/plain")
(data (i32.const 1072) "Host")
(data (i32.const 1088) "elsewhere")
(data (i32.const 1104) "\30\04\00\00\04\00\00\00\40\04\00\00\09\00\00\00")
;; body
(call $body (i32.const 1024) (i32.const 10) (i32.const 1024) (i32.const 10) (i32.const 1104) (i32.const 1))
