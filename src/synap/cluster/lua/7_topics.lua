-- ------------------------------------------------------------------------------------------------------ pub/sub
--
-- Nothing is kept but who listens, so that every gateway can tell who matches. In partition 0:
--   P   hash  '<gateway> <subscription>' -> patterns     PV  number of the last change
--   PL  stream of them, <number>-0: f (field), n (nothing), h (the history of the node that made it). A release before this
--       one wrote p (the field's patterns then) instead of n, and adds 1 to the number for each change. STEP is another, so
--       that it misses some where it reads these, and reads all of P.
--   PG  zset  alive until ms -> gateway
-- and in each of the topics' partitions TV, the number of the last change that publishers there must know.

local LEAP = 2 ^ 20       -- more than what a failover takes back
local STEP = 2

-- What differs where the last changes may be lost: each promotion begins another, and so may each restart.
local function history() return here() .. string.match(call('INFO', 'replication'), 'master_replid:(%x+)') end

-- Numbers leap in another history, so that no change has one that somebody knows of a change that was taken back: to
-- those, changes seem to be missing, and they read all there is. Where nothing is left, only the time is beyond what was.
local function leap(counter, known)
  local number = math.max(tonumber(call('GET', counter) or 0) + LEAP, known, micros())
  call('SET', counter, whole(number))
  return number
end

local function note_change(K, field, patterns, history)
  if patterns == '' then call('HDEL', K[1], field) else call('HSET', K[1], field, patterns) end
  local last = call('XREVRANGE', K[3], '+', '-', 'COUNT', 1)[1]
  local number = last and last[2][6] == history and call('INCRBY', K[2], STEP) or leap(K[2], 0)
  call('XADD', K[3], 'MAXLEN', '~', 10000, whole(number) .. '-0', 'f', field, 'n', '', 'h', history)
  return number
end

-- K P PV PL PG   A gateway, subscription, patterns or '' (it is gone), alive ms   -> number of the change
change('syn_p_change', function(K, A)
  call('ZADD', K[4], whole(now() + tonumber(A[4])), A[1])
  return note_change(K, A[1] .. ' ' .. A[2], A[3], history())
end, {'allow-oom'})

-- Say that a gateway is alive, and take out subscriptions of those that aren't, 1,000 at most.   K P PV PL PG
-- A gateway, alive ms   -> {number of the last change, 1 where there may be more to take out}
change('syn_p_alive', function(K, A)
  local time, left, dead, any = now(), 1000, {}, false
  call('ZADD', K[4], whole(time + tonumber(A[2])), A[1])
  for _, gateway in ipairs(call('ZRANGE', K[4], '-inf', time, 'BYSCORE', 'LIMIT', 0, 10)) do dead[gateway], any = true, true end
  if any then
    local history = history()
    for _, field in ipairs(call('HKEYS', K[1])) do
      if left > 0 and dead[string.match(field, '^%S+')] then
        note_change(K, field, '', history)
        left = left - 1
      end
    end
    if left > 0 then
      for gateway in pairs(dead) do call('ZREM', K[4], gateway) end
    end
  end
  return {tonumber(call('GET', K[2]) or 0), left == 0 and 1 or 0}
end, {'allow-oom'})

-- Go on counting beyond `number`, where a failover took changes back that publishers were told of: those who know them have
-- to notice, too.   K PV   A number
change('syn_p_raise', function(K, A)
  if tonumber(call('GET', K[1]) or 0) < tonumber(A[1]) then leap(K[1], A[1] + 1) end
  return 1
end, {'allow-oom'})

-- K P PV PL   A number known
-- -> {number of the last change, 0, (field, patterns)… of all}, or {number, 1, of those that changed}; '' where they are gone
read('syn_p_read', function(K, A)
  local number, known = tonumber(call('GET', K[2]) or 0), tonumber(A[1])
  local fields, seen, missing = {}, {}, number - known
  for _, entry in ipairs(known > 0 and missing > 0 and call('XRANGE', K[3], whole(known + 1), '+') or {}) do
    local field = entry[2][2]
    if not seen[field] then fields[#fields + 1], seen[field] = field, true end
    missing = missing - (entry[2][3] == 'p' and 1 or STEP)
  end
  local found = {number, 1}
  if missing ~= 0 or known == 0 then
    found[2] = 0
    for _, text in ipairs(call('HGETALL', K[1])) do found[#found + 1] = text end
    return found
  end
  for first = 1, #fields, 1000 do         -- unpack holds some thousands
    local last = math.min(first + 999, #fields)
    for i, patterns in ipairs(call('HMGET', K[1], unpack(fields, first, last))) do
      found[#found + 1] = fields[first + i - 1]
      found[#found + 1] = patterns or ''
    end
  end
  return found
end)

-- K TV   A number that publishers must know
change('syn_p_tell', function(K, A)
  if tonumber(call('GET', K[1]) or 0) < tonumber(A[1]) then call('SET', K[1], A[1]) end
  return 1
end, {'allow-oom'})

-- K TV   A number known, message, gateways that match…   -> 0, or the number that must be known first
change('syn_p_publish', function(K, A)
  local needed = tonumber(call('GET', K[1]) or 0)
  if needed > tonumber(A[1]) then return needed end
  local channel = string.match(K[1], '^[^}]*}:') .. 'g:'
  for i = 3, #A do call('SPUBLISH', channel .. A[i], 't' .. A[2]) end
  return 0
end, {'allow-oom'})
