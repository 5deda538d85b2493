;; A payload that would be JSON if it were text.
(data (i32.const 1024) "\22\ff\22")
;; body
(call $payload (i32.const 1024) (i32.const 3))
