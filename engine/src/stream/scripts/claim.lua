-- Takes entries of consumers that do not beat any more, whatever the age of the entries: an old entry of a
-- live consumer is work in hand. Removes dead consumers, but only once nothing is pending for them, since
-- what is pending for a removed consumer is pending for nobody.
-- KEYS: events, alive. ARGV: group, me, dead after (ms), limit.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = tonumber(ARGV[4])
local claimed = {}
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = {}
    for i = 1, #info, 2 do consumer[info[i]] = info[i + 1] end
    local beat = redis.call('ZSCORE', KEYS[2], consumer.name)
    if consumer.name ~= ARGV[2] and (not beat or now - tonumber(beat) > tonumber(ARGV[3])) then
        if consumer.pending == 0 then
            redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
            redis.call('ZREM', KEYS[2], consumer.name)
        elseif #claimed < limit then
            local ids = {}
            for _, p in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', limit - #claimed, consumer.name)) do
                ids[#ids + 1] = p[1]
            end
            for _, entry in ipairs(redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))) do
                claimed[#claimed + 1] = entry
            end
        end
    end
end
return claimed
