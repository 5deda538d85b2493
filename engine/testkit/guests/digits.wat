;; Every digit from 1 to 8 becomes the next one, which leaves JSON what it is. In place: the payload is the guest's own copy.
(func $edit (param $at i32) (param $end i32)
  (local $byte i32)
  (block $done
    (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (local.set $byte (i32.load8_u (local.get $at)))
      (if (i32.lt_u (i32.sub (local.get $byte) (i32.const 49)) (i32.const 8))
        (then (i32.store8 (local.get $at) (i32.add (local.get $byte) (i32.const 1)))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next))))
;; body
(call $edit (local.get $at) (i32.add (local.get $at) (local.get $len)))
(call $payload (local.get $at) (local.get $len))
