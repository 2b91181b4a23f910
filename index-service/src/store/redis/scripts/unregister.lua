-- ARGV from 4: file ids.
if not row then return {0, '', 0} end
for i = 4, #ARGV do
  local before = redis.call('HGET', files, ARGV[i])
  if before then
    add(before, -1)
    count = count - 1
    redis.call('HDEL', files, ARGV[i])
  end
end
local n, id = publish()
store(n)
return {n, id, prev}
