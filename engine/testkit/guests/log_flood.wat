;; Ten thousand lines with a NUL, one that is longer than a line may be, and one that is the last.
(data (i32.const 1024) "a line that says nothing\00, and says it again")
(data (i32.const 1100) "the last one")
(func $flood
  (local $n i32)
  (loop $next
    (call $log (i32.const 1) (i32.const 1024) (i32.const 45))
    (local.set $n (i32.add (local.get $n) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $n) (i32.const 10000))))
  ;; Letters of two bytes, from an odd place on: the cut must not fall into one.
  (i32.store8 (i32.const 2000) (i32.const 97))
  (local.set $n (i32.const 2001))
  (loop $next
    (i32.store16 (local.get $n) (i32.const 0xa9c3))
    (local.set $n (i32.add (local.get $n) (i32.const 2)))
    (br_if $next (i32.lt_u (local.get $n) (i32.const 8001))))
  (call $log (i32.const 2) (i32.const 2000) (i32.const 6001))
  (call $log (i32.const 3) (i32.const 1100) (i32.const 12)))
;; body
(call $flood)
(call $unchanged)
