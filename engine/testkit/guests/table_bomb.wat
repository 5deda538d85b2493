;; Asks for a table without end.
(table $t 1 funcref)
;; body
(loop $more
  (br_if $more (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 1000)))))
(if (i32.gt_u (table.size $t) (i32.const 20000)) (then (unreachable)))
(call $unchanged)
