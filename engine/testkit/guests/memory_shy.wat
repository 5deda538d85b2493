;; Asks for more than there is, and does without it.
(drop (memory.grow (i32.const 32768)))
(call $unchanged)
