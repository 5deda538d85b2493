;; Drops events whose id is odd: the last digit decides.
(data (i32.const 1024) "odd id")
;; body
(if (result i32)
  (i32.and (i32.const 1) (i32.load8_u (i32.sub (i32.add (local.get $id) (local.get $id_len)) (i32.const 1))))
  (then (call $drop (i32.const 1024) (i32.const 6)))
  (else (call $unchanged)))
