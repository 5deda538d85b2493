;; It says so itself, with a NUL in its text.
(data (i32.const 1024) "no amount\00 given")
;; body
(call $error (i32.const 1024) (i32.const 16))
