;; A text of its own, with a header.
(data (i32.const 1024) "text/plain; charset=utf-8")
(data (i32.const 1056) "hello")
(data (i32.const 1072) "x-from")
(data (i32.const 1088) "a module")
(data (i32.const 1104) "\30\04\00\00\06\00\00\00\40\04\00\00\08\00\00\00")
;; body
(call $body (i32.const 1024) (i32.const 25) (i32.const 1056) (i32.const 5) (i32.const 1104) (i32.const 1))
