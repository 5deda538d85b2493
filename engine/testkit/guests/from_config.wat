;; The value of the first setting, as payload.
(call $payload (i32.load offset=8 (local.get $config)) (i32.load offset=12 (local.get $config)))
