;; Says whether it found memory, a new page and a global as they were made, then leaves the payload in all of them.
(global $before (mut i32) (i32.const 0))
(func $zero (param $at i32) (param $end i32) (result i32)
  (loop $next
    (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (return (i32.const 0))))
    (local.set $at (i32.add (local.get $at) (i32.const 8)))
    (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
  (i32.const 1))
(data (i32.const 1024) "true")
(data (i32.const 1032) "false")
(func $look (param $at i32) (param $len i32) (result i32)
  (local $clean i32)
  (drop (memory.grow (i32.const 1)))
  (local.set $clean (i32.and
    (i32.eqz (global.get $before))
    (i32.and
      (call $zero (i32.const 49152) (i32.const 65536))
      (call $zero (i32.const 65536) (i32.const 131072)))))
  (global.set $before (i32.const 1))
  (memory.fill (i32.const 49152) (i32.load8_u (local.get $at)) (i32.const 16384))
  (memory.fill (i32.const 65536) (i32.load8_u (local.get $at)) (i32.const 65536))
  (memory.copy (i32.const 50000) (local.get $at) (local.get $len))
  (local.get $clean))
;; body
(if (result i32) (call $look (local.get $at) (local.get $len))
  (then (call $payload (i32.const 1024) (i32.const 4)))
  (else (call $payload (i32.const 1032) (i32.const 5))))
