;; A hundred thousand headers that all are the same 60,000 bytes: 6 GB if somebody copied them.
(data (i32.const 1024) "text/plain")
(func $fill (local $at i32)
  (drop (memory.grow (i32.const 40)))
  (memory.fill (i32.const 65536) (i32.const 120) (i32.const 60000))
  (local.set $at (i32.const 131072))
  (loop $next
    (i32.store (local.get $at) (i32.const 65536))
    (i32.store offset=4 (local.get $at) (i32.const 60000))
    (i32.store offset=8 (local.get $at) (i32.const 65536))
    (i32.store offset=12 (local.get $at) (i32.const 60000))
    (local.set $at (i32.add (local.get $at) (i32.const 16)))
    (br_if $next (i32.lt_u (local.get $at) (i32.const 1731072)))))
;; body
(call $fill)
(call $body (i32.const 1024) (i32.const 10) (i32.const 1024) (i32.const 10) (i32.const 131072) (i32.const 100000))
