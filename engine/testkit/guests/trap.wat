;; Ends at once.
(unreachable)
