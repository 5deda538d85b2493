-- Says that a consumer lives, by the server's clock. Returns how many do.
-- KEYS: alive. ARGV: consumer, dead after (ms).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
return redis.call('ZCOUNT', KEYS[1], now - ARGV[2], '+inf')
