-- Takes entries of consumers that do not beat any more, whatever the age of the entries: an old entry of a
-- live consumer is work in hand. Removes dead consumers, but only once nothing is pending for them, since
-- what is pending for a removed consumer is pending for nobody. Returns the entries, and the ids of those
-- whose holders died for the second time or more often.
-- KEYS: events, alive, epoch. ARGV: the epoch, group, me, dead after (ms), limit.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return redis.error_reply('EPOCH this is not what was looked over') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = tonumber(ARGV[5])
local claimed, suspect = {}, {}
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[2])) do
    local consumer = {}
    for i = 1, #info, 2 do consumer[info[i]] = info[i + 1] end
    local beat = redis.call('ZSCORE', KEYS[2], consumer.name)
    if consumer.name ~= ARGV[3] and (not beat or now - tonumber(beat) > tonumber(ARGV[4])) then
        if consumer.pending == 0 then
            redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[2], consumer.name)
            redis.call('ZREM', KEYS[2], consumer.name)
        elseif #claimed < limit then
            local ids = {}
            for _, p in ipairs(redis.call('XPENDING', KEYS[1], ARGV[2], '-', '+', limit - #claimed, consumer.name)) do
                ids[#ids + 1] = p[1]
                if p[4] >= 2 then suspect[#suspect + 1] = p[1] end
            end
            for _, entry in ipairs(redis.call('XCLAIM', KEYS[1], ARGV[2], ARGV[3], 0, unpack(ids))) do
                claimed[#claimed + 1] = entry
            end
        end
    end
end
return {claimed, suspect}
