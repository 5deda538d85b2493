-- Adds members with a lease on them, and counts it as in lease.lua, as long as there is room. One that is there stays as it is: it
-- is in somebody's hands, or about to be.
-- KEYS: due, epoch, leased. ARGV: the epoch, most members, lease (ms), then the members. Returns those that were added.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('EPOCH this is not what was looked over') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local room = ARGV[2] - redis.call('ZCARD', KEYS[1])
local taken = {}
for i = 4, #ARGV do
    if room <= 0 then break end
    if redis.call('ZADD', KEYS[1], 'NX', now + ARGV[3], ARGV[i]) == 1 then
        redis.call('HINCRBY', KEYS[3], ARGV[i], 1)
        taken[#taken + 1] = ARGV[i]
        room = room - 1
    end
end
return taken
