-- ARGV[4]: whether to keep a peer that has a lease.
if not row then return {0, '', 0} end
if ARGV[4] == '1' and redis.call('EXISTS', lease) == 1 then return {0, 'alive', prev} end
redis.call('UNLINK', files)
redis.call('DEL', lease)
redis.call('HDEL', peers, peer)
local n, id = publish()
return {n, id, prev}
