-- Hands out members whose time has come and pushes their time ahead by the lease: the outcome removes or
-- re-schedules them, and a crash ends with the lease. Counts leases that had no outcome: a member that was leased twice
-- in vain is suspect, and is handed out one at a time to who asks for it; the others wait a second.
-- KEYS: due, epoch, leased. ARGV: the epoch, limit, lease (ms), whether a suspect may be among them (1 or 0). Returns the
-- members, and the suspect if there is one.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('EPOCH this is not what was looked over') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members, suspects = {}, {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
    local before = tonumber(redis.call('HGET', KEYS[3], member) or 0)
    local wait = ARGV[3]
    if before < 2 then
        members[#members + 1] = member
    elseif ARGV[4] == '1' and #suspects == 0 then
        suspects[1] = member
    else
        wait = 1000
    end
    redis.call('ZADD', KEYS[1], 'XX', now + wait, member)
    if wait == ARGV[3] then redis.call('HINCRBY', KEYS[3], member, 1) end
end
return {members, suspects}
