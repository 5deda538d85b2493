-- Gives one dispatcher the right to probe an endpoint whose breaker is open.
-- KEYS: breaker, probe. ARGV: lease (ms). Returns 0 closed, 1 probe, 2 wait.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[1]) then return 1 end
return 2
