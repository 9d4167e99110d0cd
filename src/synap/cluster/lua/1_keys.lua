-- ------------------------------------------------------------------------------------------------------ key-value

local PREVIOUS = 65536    -- bytes of an earlier value that kv.set answers with
local APART = 1000        -- ms by which the clocks of a primary and of who takes over from it may differ

-- Take up to `most` keys out of the index whose time is over, by the clock of another node too: a key that is stored again
-- while it is there isn't entered anew.
local function sweep_keys(index, expiry, time, most)
  for _, key in ipairs(call('ZRANGE', expiry, '-inf', time - APART, 'BYSCORE', 'LIMIT', 0, most)) do
    call('ZREM', expiry, key)
    call('ZREM', index, key)
  end
end

-- Store a value; `ttl` is ms, '' for none or 'keep'; `old` says whether the key is there. One that isn't there may have
-- expired and not been swept yet: then `expiry` still has it.
local function put(at, index, expiry, key, value, ttl, old)
  if ttl == 'keep' and old then
    call('SET', at, value, 'KEEPTTL')
  elseif ttl == '' or ttl == 'keep' then
    call('SET', at, value)
    call('ZREM', expiry, key)
  else
    local time = now()
    local due = whole(time + tonumber(ttl))
    call('SET', at, value, 'PXAT', due)
    call('ZADD', expiry, due, key)
    sweep_keys(index, expiry, time, 2)
  end
  if not old then call('ZADD', index, 0, key) end
end

-- Whether a key holds one of two values: the one that was asked for, and that one in the other format.
local function is(old, value, other) return old == value or (other ~= '' and old == other) end

-- K memory, key, kx, kt   A … key, value, and where it isn't as usual: ttl, '' | 'nx' | 'xx' | 'is', the value it must be, the
-- same in the other format   -> '1' where it was stored or '0', and the previous value
write('syn_set', function(K, A)
  local ttl, rule = A[5] or '', A[6] or ''
  if SHORT_CUTS and ttl == '' and rule == '' then
    local old = call('GETSET', K[2], A[4])     -- drops its ttl, and costs less than SET GET
    call('ZREM', K[4], A[3])
    if not old then call('ZADD', K[3], 0, A[3]) end
    return old and #old <= PREVIOUS and '1' .. old or '1'
  end
  local old = call('GET', K[2])
  local previous = old and #old <= PREVIOUS and old or ''
  if rule == 'nx' and old or rule == 'xx' and not old or rule == 'is' and not (old and is(old, A[7], A[8])) then return '0' .. previous end
  put(K[2], K[3], K[4], A[3], A[4], ttl, old)
  return '1' .. previous
end)

-- K memory, kx, kt, key…   A … (key, value, ttl)…   -> {1}
write('syn_mset', function(K, A)
  for i = 4, #K do
    local a = 3 + (i - 4) * 3
    put(K[i], K[2], K[3], A[a], A[a + 1], A[a + 2], call('EXISTS', K[i]) == 1)
  end
  return {1}
end)

-- The value; where it expires {value, ms left}; false where there is none.
local function found(key)
  local value = call('GET', key)
  local left = value and call('PTTL', key)
  return value and (left < 0 and value or {value, left}), value and #value or 0
end

-- K key   A '1' where it must be there   -> what is found
read('syn_get', function(K, A)
  local answer = found(K[1])
  return answer or A[1] == '1' and fail('KEY_NOT_FOUND')
end)

-- K key…   A most bytes, '1' where the first may be larger   -> what is found of each; not of those from the one on with
-- which the values are more bytes than that
read('syn_mget', function(K, A)
  local answers, left = {}, tonumber(A[1])
  for i, key in ipairs(K) do
    local answer, size = found(key)
    left = left - size
    if left < 0 and not (i == 1 and A[2] == '1') then break end
    answers[i] = answer
  end
  return answers
end)

-- K memory, key, kx, kt   A … key, amount, another where the sum passes 64 bits   -> the number as text
write('syn_incr', function(K, A)
  local old = call('GET', K[2])
  if old and not string.find(old, '^%-?%d+$') then return fail('WRONG_TYPE') end
  if old == '-0' then call('SET', K[2], '0', 'KEEPTTL') end
  if A[5] and not string.find(old or '', '^%-[1-9]') or not pcall(call, 'INCRBY', K[2], A[4]) then return fail('INTEGER_OVERFLOW') end
  if A[5] then call('INCRBY', K[2], A[5]) end
  if not old then
    call('ZADD', K[3], 0, A[3])
    call('ZREM', K[4], A[3])
  end
  return call('GET', K[2])
end)

-- K memory, kx, kt, key…   A … (key)…   -> {deleted}
write('syn_del', function(K, A)
  local deleted = 0
  for i = 4, #K do
    if call('UNLINK', K[i]) == 1 then
      deleted = deleted + 1
      call('ZREM', K[2], A[i - 1])
      call('ZREM', K[3], A[i - 1])
    end
  end
  return {deleted}
end, {'allow-oom'})

-- K memory, kx, kt, key   A … key, the value it must have in either format   -> {deleted}
write('syn_del_if', function(K, A)
  local old = call('GET', K[4])
  if not (old and is(old, A[4], A[5])) then return {0} end
  call('UNLINK', K[4])
  call('ZREM', K[2], A[3])
  call('ZREM', K[3], A[3])
  return {1}
end, {'allow-oom'})

-- K memory, key, kt   A … key, ttl ms or '' (persist), '1' and the value it must have in either format
-- -> {changed}
write('syn_expire', function(K, A)
  local old = call('GET', K[2])
  if A[5] == '1' and not (old and is(old, A[6], A[7])) then return {0} end
  if not old then return fail('KEY_NOT_FOUND') end
  if A[4] == '' then
    call('PERSIST', K[2])
    call('ZREM', K[3], A[3])
  else
    local due = whole(now() + tonumber(A[4]))
    call('PEXPIREAT', K[2], due)
    call('ZADD', K[3], due, A[3])
  end
  return {1}
end, {'allow-oom'})

-- K kx, kt   A from ('[a', '(a' or '-'), to ('(b' or '+'), count   -> {keys that are live, the last one looked at or '' where that was all}
read('syn_page', function(K, A)
  local found = call('ZRANGE', K[1], A[1], A[2], 'BYLEX', 'LIMIT', 0, A[3])
  local last = #found == tonumber(A[3]) and found[#found] or ''
  if call('EXISTS', K[2]) == 0 then return {found, last} end
  local dues, live, time = {}, {}, now()
  for first = 1, #found, 1000 do          -- unpack holds some thousands
    local some = call('ZMSCORE', K[2], unpack(found, first, math.min(first + 999, #found)))
    for _, due in ipairs(some) do dues[#dues + 1] = due end
  end
  for i, key in ipairs(found) do
    if not dues[i] or tonumber(dues[i]) >= time then live[#live + 1] = key end
  end
  return {live, last}
end)

-- K kx, kt   -> how many expire later
change('syn_sweep', function(K)
  sweep_keys(K[1], K[2], now(), 1000)
  return call('ZCARD', K[2])
end, {'allow-oom'})
