;; A payload that is no JSON.
(data (i32.const 1024) "{oops")
;; body
(call $payload (i32.const 1024) (i32.const 5))
