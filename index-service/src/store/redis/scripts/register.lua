-- ARGV from 4: record, whether to replace, lease in ms or 0, then pairs of file id and entry.
record = ARGV[4]
if ARGV[5] == '1' then
  redis.call('UNLINK', files)
  limbs, count = {0, 0, 0, 0, 0, 0, 0, 0}, 0
end
for i = 7, #ARGV, 2 do
  local before = redis.call('HGET', files, ARGV[i])
  if before then add(before, -1) else count = count + 1 end
  add(ARGV[i + 1], 1)
  redis.call('HSET', files, ARGV[i], ARGV[i + 1])
end
local n, id = publish()
store(n)
if ARGV[6] ~= '0' then redis.call('SET', lease, '', 'PX', ARGV[6]) end
return {n, id, prev}
