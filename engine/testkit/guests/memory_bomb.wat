;; Asks for a mebibyte at a time and ends when it gets no more, as an allocator does.
(loop $more
  (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16)))))
(unreachable)
