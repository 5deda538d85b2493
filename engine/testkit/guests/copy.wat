;; The payload's own bytes, given back.
(call $payload (local.get $at) (local.get $len))
