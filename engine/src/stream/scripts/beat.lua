-- Says that a consumer lives, by the server's clock.
-- KEYS: alive. ARGV: consumer.
local time = redis.call('TIME')
return redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
