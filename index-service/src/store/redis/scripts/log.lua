-- Appends lines to a list, or replaces it, if it ends as expected.
-- KEYS: the list. ARGV: its length, its last line, 'append' or 'replace', and the lines.
local length = redis.call('LLEN', KEYS[1])
if length ~= tonumber(ARGV[1]) then return 0 end
if length > 0 and redis.call('LINDEX', KEYS[1], -1) ~= ARGV[2] then return 0 end
if ARGV[3] == 'replace' then redis.call('DEL', KEYS[1]) end
for place = 4, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[place]) end
return 1
