;; Gives back two mebibytes of spaces around a number.
(drop (memory.grow (i32.const 33)))
(memory.fill (i32.const 65536) (i32.const 32) (i32.const 2097152))
(i32.store8 (i32.const 65536) (i32.const 49))
(call $payload (i32.const 65536) (i32.const 2097152))
