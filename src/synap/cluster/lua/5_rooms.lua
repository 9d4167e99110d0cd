-- ------------------------------------------------------------------------------------------------------ event streams
--
-- sh  hash    inc (prefix of ids), home (the run of the node that gave the last offsets), next (offset of the next event),
--             i:<inc> -> for one of before, the offset up to which its events are still there, c:<name> -> offset of the first
--             event that a durable subscription has not done, o:<name> -> number of the subscription that has it, which grows
-- se  stream  <offset + 1>-0 -> t (Unix seconds), e (the event as the gateway packed it)
-- ss  hash    gateway -> 'subscriptions there, until when that holds'
-- K memory, R, sh, se, ss; A begins with … room

local run                  -- id of this node's process: one that restarts may lack events, as another node may
local function here()
  run = run or string.match(call('INFO', 'server'), 'run_id:(%x+)')
  return run
end

local function subscribers(key, time)
  local total, all = 0, call('HGETALL', key)
  for i = 2, #all, 2 do
    local count, lease = string.match(all[i], '^(%d+) (%d+)$')
    if tonumber(lease) > time then total = total + tonumber(count) end
  end
  return total
end

local function follow(key, gateway, count, until_when)
  if count == '0' then call('HDEL', key, gateway) else call('HSET', key, gateway, count .. ' ' .. whole(math.floor(until_when))) end
end

-- How many events to read at once, after some: of large ones few, since all that are read are in memory.
local function few(bytes, count) return math.max(1, math.min(32, math.floor(BYTES / 4 / (bytes / count)))) end

-- The oldest event's offset, or `next` where there is none.
local function oldest_event(key, next)
  local first = call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  return first and tonumber(string.match(first[1], '^%d+')) - 1 or next
end

-- Let up to `most` events go that are older than `age` ms, or 32 of those that are large. Mostly not even the first is:
-- reading it alone is cheaper.
local function trim(key, time, age, most)
  local function lasts(entry) return not entry or tonumber(entry[2][2]) * 1000 + age > time end
  local keep_from, count, bytes, some = nil, 0, 0, call('XRANGE', key, '-', '+', 'COUNT', 1)
  while not lasts(some[1]) do
    for _, entry in ipairs(some) do
      if lasts(entry) then break end
      keep_from = tonumber(string.match(entry[1], '^%d+')) + 1
      count, bytes = count + 1, bytes + #entry[2][4]
    end
    if count >= most or bytes >= BYTES and count >= 32 then break end
    some = call('XRANGE', key, whole(keep_from), '+', 'COUNT', math.min(few(bytes, count), most - count))
  end
  if keep_from then call('XTRIM', key, 'MINID', whole(keep_from)) end
  return keep_from
end

-- Begin a new inc at `next`. What is left of the earlier ones ends there at the latest; of more than 32, those that lost
-- most are forgotten.
local function succeed(h, old, next)
  local all, count, least = call('HGETALL', h), 0, nil
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'i:' then
      local kept = math.min(tonumber(all[i + 1]), next)
      count = count + 1
      if not least or kept < least[2] then least = {all[i], kept} end
      if kept ~= tonumber(all[i + 1]) then call('HSET', h, all[i], whole(kept)) end
    end
  end
  if count >= 32 then call('HDEL', h, least[1]) end
  call('HSET', h, 'i:' .. old, whole(next))
end

-- The offset up to which somebody who knows the room by an earlier inc has seen what is still there: -1 where that inc is
-- unknown, '' where it is the one of now.
local function kept(h, inc, known)
  if known == '' or known == inc then return '' end
  return tonumber(call('HGET', h, 'i:' .. known) or -1)
end

-- Refuse a durable name that is new where a room has as many as it may. They are counted only where there may be as many.
local function refuse_name(h, name, most)
  if call('HEXISTS', h, 'c:' .. name) == 1 or call('HLEN', h) < most then return nil end
  local count = 0
  for _, field in ipairs(call('HKEYS', h)) do
    if string.sub(field, 1, 2) == 'c:' then count = count + 1 end
  end
  return count >= most and fail('NAMES', whole(count)) or nil
end

-- A … room, inc of a new one, most events, most age ms, the event   -> {inc, offset, time, subscribers}
-- A room that is found in another run of a node than before has a new inc: its last events may have been lost.
write('syn_s_publish', function(K, A)
  local time = now()
  local head = call('HMGET', K[3], 'inc', 'home')
  local inc = head[1]
  if head[2] ~= here() then
    inc = A[4]
    if head[1] then succeed(K[3], head[1], tonumber(call('HGET', K[3], 'next') or 0)) end
    call('HSET', K[3], 'inc', inc, 'home', here())
    if not head[1] then call('SADD', K[2], A[3]) end
  end
  local seconds, offset = math.floor(time / 1000), call('HINCRBY', K[3], 'next', 1) - 1
  call('XADD', K[4], 'MAXLEN', '=', A[5], whole(offset + 1) .. '-0', 't', seconds, 'e', A[7])
  if offset % 16 == 0 then trim(K[4], time, tonumber(A[6]), 64) end
  local notified = subscribers(K[5], time)
  if notified > 0 then call('SPUBLISH', K[5], inc .. ' ' .. whole(offset) .. ' ' .. seconds .. ' ' .. A[7]) end
  return {inc, offset, seconds, notified}
end)

-- Say how many subscriptions a gateway has, and until when that holds; make the room where it is not there. With a name,
-- take the durable subscription of that name over; one that is new begins at `first`: an offset (from the end where it is
-- below 0, at most the next), 'oldest' or 'next'.
-- A … room, inc of a new one, gateway, subscriptions there, lease ms, name or '', first, most names
-- -> {inc, oldest, next, offset of the name or '', number of the subscription that has it}
change('syn_s_join', function(K, A)
  local refused = A[8] ~= '' and refuse_name(K[3], A[8], tonumber(A[10]))
  if refused then return refused end
  local us = micros()
  if call('HSETNX', K[3], 'inc', A[4]) == 1 then
    call('HSET', K[3], 'home', here())
    call('SADD', K[2], A[3])
  end
  follow(K[5], A[5], A[6], us / 1000 + tonumber(A[7]))
  local next = tonumber(call('HGET', K[3], 'next') or 0)
  local oldest = oldest_event(K[4], next)
  local cursor, number = '', 0
  if A[8] ~= '' then
    local first = A[9] == 'oldest' and oldest or A[9] == 'next' and next or tonumber(A[9])
    if first < 0 then first = math.max(next + first, 0) end
    call('HSETNX', K[3], 'c:' .. A[8], whole(math.min(math.max(first, oldest), next)))
    cursor = call('HGET', K[3], 'c:' .. A[8])
    number = math.max(us, (tonumber(call('HGET', K[3], 'o:' .. A[8]) or 0) or 0) + 1)
    call('HSET', K[3], 'o:' .. A[8], whole(number))
    call('SPUBLISH', K[5], 'over ' .. whole(number) .. ' ' .. A[8])
  end
  return {call('HGET', K[3], 'inc'), oldest, next, cursor, whole(number)}
end, {'allow-oom'})

-- Give a sign of life for a gateway's subscriptions.   A … room, gateway, subscriptions there, lease ms, names…
-- -> {inc, next, number of the subscription that has the name, for each}
change('syn_s_alive', function(K, A)
  local inc = call('HGET', K[3], 'inc')
  if not inc then return fail('ROOM_NOT_FOUND') end
  follow(K[5], A[4], A[5], now() + tonumber(A[6]))
  local found = {inc, tonumber(call('HGET', K[3], 'next') or 0)}
  for a = 7, #A do found[#found + 1] = call('HGET', K[3], 'o:' .. A[a]) or '0' end
  return found
end, {'allow-oom'})

-- Withdraw a gateway's subscriptions; a room that is gone is not made again.   A … room, gateway, subscriptions, lease ms
change('syn_s_leave', function(K, A)
  if call('EXISTS', K[3]) == 0 then return {0} end
  follow(K[5], A[4], A[5], now() + tonumber(A[6]))
  return {1}
end, {'allow-oom'})

-- K sh, se   A from or '', to or '', limit, most bytes, inc that the reader knows or ''
-- -> {inc, oldest, next, events, what `kept` says}; ends below 0 count from the end. One event is given however large it is.
read('syn_s_history', function(K, A)
  local head = call('HMGET', K[1], 'inc', 'next')
  if not head[1] then return fail('ROOM_NOT_FOUND') end
  local next = tonumber(head[2] or 0)
  local old, valid = oldest_event(K[2], next), kept(K[1], head[1], A[5])
  local from, to = tonumber(A[1] ~= '' and A[1] or old), tonumber(A[2] ~= '' and A[2] or next - 1)
  if from < 0 then from = next + from end
  if to < 0 then to = next + to end
  from, to = math.max(from, old), math.min(to, next - 1)
  if from > to then return {head[1], old, next, {}, valid} end
  local limit, most, left, events, count = tonumber(A[3]), tonumber(A[4]), tonumber(A[4]), {}, 1
  while from <= to and #events < limit do
    local some = call('XRANGE', K[2], whole(from + 1), whole(to + 1), 'COUNT', math.min(limit - #events, count))
    for _, entry in ipairs(some) do
      left = left - #entry[2][4]
      if left < 0 and #events > 0 then return {head[1], old, next, events, valid} end
      events[#events + 1] = entry
    end
    if #some == 0 then break end
    count = math.max(1, math.min(few(most - left, #events), math.floor(left / ((most - left) / #events))))
    from = tonumber(string.match(some[#some][1], '^%d+'))
  end
  return {head[1], old, next, events, valid}
end)

-- K sh, se, ss   -> {inc, oldest, next, subscribers}
read('syn_s_stats', function(K)
  local head = call('HMGET', K[1], 'inc', 'next')
  if not head[1] then return fail('ROOM_NOT_FOUND') end
  local next = tonumber(head[2] or 0)
  return {head[1], oldest_event(K[2], next), next, subscribers(K[3], now())}
end)

-- A … room, name, offset of the last event that is done, most names   -> {1}
write('syn_s_commit', function(K, A)
  if call('EXISTS', K[3]) == 0 then return fail('ROOM_NOT_FOUND') end
  local next = tonumber(call('HGET', K[3], 'next') or 0)
  local offset = tonumber(A[5])
  if offset < -1 or offset >= next then return fail('INVALID_PAYLOAD', whole(next - 1)) end
  local refused = refuse_name(K[3], A[4], tonumber(A[6]))
  if refused then return refused end
  call('HSET', K[3], 'c:' .. A[4], whole(offset + 1))
  return {1}
end, {'allow-oom'})

-- A … room, name   -> {forgotten}
write('syn_s_forget', function(K, A)
  if call('EXISTS', K[3]) == 0 then return fail('ROOM_NOT_FOUND') end
  call('HDEL', K[3], 'o:' .. A[4])
  local known = call('HEXISTS', K[3], 'c:' .. A[4])
  call('HDEL', K[3], 'c:' .. A[4])
  return {known}
end, {'allow-oom'})

-- K sh   -> {next, (name, offset of the first event that it has not done)…}
read('syn_s_cursors', function(K)
  local all = call('HGETALL', K[1])
  if #all == 0 then return fail('ROOM_NOT_FOUND') end
  local found = {tonumber(call('HGET', K[1], 'next') or 0)}
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'c:' then
      found[#found + 1] = string.sub(all[i], 3)
      found[#found + 1] = all[i + 1]
    end
  end
  return found
end)

-- A … room   -> {1}
write('syn_s_delete', function(K, A)
  if call('EXISTS', K[3]) == 0 then return fail('ROOM_NOT_FOUND') end
  call('SPUBLISH', K[5], 'gone ' .. call('HGET', K[3], 'inc'))
  for i = 3, 5 do call('UNLINK', K[i]) end
  call('SREM', K[2], A[3])
  return {1}
end, {'allow-oom'})

-- Let old events go, and gateways that died, which each publish would read.   A … room, most age ms
-- -> {1 where there may be more events}
change('syn_s_trim', function(K, A)
  local time, all = now(), call('HGETALL', K[5])
  for i = 2, #all, 2 do
    if tonumber(string.match(all[i], '%d+$')) <= time then call('HDEL', K[5], all[i - 1]) end
  end
  return {trim(K[4], time, tonumber(A[4]), 1000) and 1 or 0}
end, {'allow-oom'})
