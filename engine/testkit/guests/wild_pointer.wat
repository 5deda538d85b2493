;; Points outside of its memory.
(call $payload (i32.const -65536) (i32.const 4096))
