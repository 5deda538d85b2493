;; How often this instance was called: more than 1 only when instances are used again.
(global $calls (mut i32) (i32.const 0))
;; body
(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
;; Three digits.
(i32.store8 (i32.const 1024) (i32.const 34))
(i32.store8 (i32.const 1025) (i32.add (i32.const 48) (i32.div_u (global.get $calls) (i32.const 100))))
(i32.store8 (i32.const 1026) (i32.add (i32.const 48) (i32.rem_u (i32.div_u (global.get $calls) (i32.const 10)) (i32.const 10))))
(i32.store8 (i32.const 1027) (i32.add (i32.const 48) (i32.rem_u (global.get $calls) (i32.const 10))))
(i32.store8 (i32.const 1028) (i32.const 34))
(if (i32.eq (i32.load8_u (local.get $at)) (i32.const 33)) (then (unreachable)))
(call $payload (i32.const 1024) (i32.const 5))
