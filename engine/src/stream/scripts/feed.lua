-- Adds members to due as long as there is room. One that is there stays as it is: it may be leased.
-- KEYS: due, epoch. ARGV: the epoch, most members, then member and delay (ms) in turns. Returns how many were added.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('EPOCH this is not what was looked over') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local room = ARGV[2] - redis.call('ZCARD', KEYS[1])
local added = 0
for i = 3, #ARGV, 2 do
    if room <= 0 then break end
    if redis.call('ZADD', KEYS[1], 'NX', now + ARGV[i + 1], ARGV[i]) == 1 then
        added = added + 1
        room = room - 1
    end
end
return added
