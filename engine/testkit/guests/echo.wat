;; The event as it came.
(call $unchanged)
