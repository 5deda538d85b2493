-- Says that a shard is in order again, if nobody and nothing touched its epoch since it was declared out of order. What is
-- in the stream by now may be settled in part, so its last id goes into the value.
-- KEYS: epoch, events. ARGV: the value that must be there, the new one without that id. Returns 1 if it was set.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local last = '0-0'
if redis.call('EXISTS', KEYS[2]) == 1 then
    local info = redis.call('XINFO', 'STREAM', KEYS[2])
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
end
redis.call('SET', KEYS[1], ARGV[2] .. last)
return 1
