-- Hands out members whose time has come and pushes their time ahead by the lease: the outcome removes or
-- re-schedules them, and a crash ends with the lease.
-- KEYS: due, epoch. ARGV: the epoch, limit, lease (ms).
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('EPOCH this is not what was looked over') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[3], member)
end
return members
