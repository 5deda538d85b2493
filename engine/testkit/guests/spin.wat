;; Burns a fixed amount of CPU, then answers as it came. The numbers depend on each other, so that nothing is left out.
(func $spin
  (local $n i32) (local $x i64)
  (local.set $n (i32.const {{rounds}}))
  (local.set $x (i64.const 1))
  (loop $next
    (local.set $x (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
    (local.set $n (i32.sub (local.get $n) (i32.const 1)))
    (br_if $next (local.get $n)))
  (i64.store (i32.const 1024) (local.get $x)))
;; body
(call $spin)
(call $unchanged)
