-- Puts members into due at the server's time plus their delay. What does not fit stays in Postgres alone
-- until the feeder brings it. A feeder only adds (NX): a member that is there may be leased.
-- Who moves a member has an outcome for it (CH), so that its leases were not in vain, or goes on with it (KEEP).
-- KEYS: due, leased. ARGV: most members, 'NX', 'CH' or 'KEEP', then member and delay (ms) in turns.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local flag = ARGV[2] == 'NX' and 'NX' or 'CH'
local room = ARGV[1] - redis.call('ZCARD', KEYS[1])
local added = 0
for i = 3, #ARGV, 2 do
    local there = redis.call('ZSCORE', KEYS[1], ARGV[i])
    if there or room > 0 then
        redis.call('ZADD', KEYS[1], flag, now + ARGV[i + 1], ARGV[i])
    end
    if ARGV[2] == 'CH' then redis.call('HDEL', KEYS[2], ARGV[i]) end
    if not there and room > 0 then
        added = added + 1
        room = room - 1
    end
end
return added
