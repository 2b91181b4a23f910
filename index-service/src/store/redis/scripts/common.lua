-- A row is `version (8) || digest (32) || count (8) || record`, all numbers little-endian. An entry is
-- `hash of the registration (32) || registration`. The digest is the sum of the hashes modulo 2^256,
-- in limbs of 32 bits, which a double can add a million times without rounding.
local peers, files, changes, lease, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local peer, event, max_changes = ARGV[1], ARGV[2], ARGV[3]
local LIMBS = '<I4I4I4I4I4I4I4I4'
local row = redis.call('HGET', peers, peer)
local prev, limbs, count, record = 0, {0, 0, 0, 0, 0, 0, 0, 0}, 0, ''
if row then
  prev = struct.unpack('<I8', row)
  limbs = {struct.unpack(LIMBS, row, 9)}
  count = struct.unpack('<I8', row, 41)
  record = string.sub(row, 49)
end
local function add(entry, sign)
  local hash = {struct.unpack(LIMBS, entry)}
  for i = 1, 8 do limbs[i] = limbs[i] + sign * hash[i] end
end
local function publish()
  local n = redis.call('INCR', version)
  local id = redis.call('XADD', changes, 'MAXLEN', '~', max_changes, '*', 'n', n, 'p', prev, 'e', event)
  return n, id
end
local function store(n)
  local carry = 0
  for i = 1, 8 do
    local sum = limbs[i] + carry
    carry = math.floor(sum / 4294967296)
    limbs[i] = sum - carry * 4294967296
  end
  local head = struct.pack('<I8', n) .. struct.pack(LIMBS, unpack(limbs, 1, 8)) .. struct.pack('<I8', count)
  redis.call('HSET', peers, peer, head .. record)
end
