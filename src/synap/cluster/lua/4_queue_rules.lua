-- ------------------------------------------------------------------------------------------------------ queues, the rest
--
-- K memory, Q, QD, then the queue's qh qb qr ql qd qw, then those of its dead letters; A begins with … queue.

local function both(K, name)
  return queue(K, name, 4, K[2], K[3]), queue(K, name .. '.dlq', 10, K[2], K[3])
end

-- A … queue, inc of a new one, then (rule, value)… for what is given   -> {made}
write('syn_q_create', function(K, A)
  local made, letters = 1 - call('EXISTS', K[4]), call('HGET', K[4], 'dl') or '1'
  for a = 5, #A, 2 do
    if A[a] == 'dl' then letters = A[a + 1] end
  end
  if letters == '1' and too_long(A[3]) then return fail('INVALID_PAYLOAD') end
  if made == 1 then make(K[4], K[2], A[3], A[4]) end
  for a = 5, #A, 2 do
    if A[a] == 'md' or A[a] == 'ad' then
      local t = head(K[4])
      t[A[a] == 'md' and 'depth' or 'deadline'] = tonumber(A[a + 1])
      keep_head(K[4], t)
    else
      call('HSET', K[4], A[a], A[a + 1])
    end
  end
  return {made}
end)

-- A … queue, message, lease or '', kin, requeue, delay ms or ''   -> {action}
write('syn_q_nack', function(K, A)
  local q, letters = both(K, A[3])
  local time, inc = now(), inc_of(K[4])
  if not inc then return missing(q.name) end
  local id, s = held(q.b, inc, A[4], A[5], A[6], time)
  if not id then return fail('MESSAGE_NOT_FOUND', s) end
  call('HINCRBY', q.h, 'nak', 1)
  if A[7] == '1' then return {give_up(q, letters, id, s, 'max_retries', time, tonumber(A[8]))} end
  if call('HGET', q.h, 'dl') == '1' then
    bury(q, letters, id, s, 'rejected', time)
    return {'dead_lettered'}
  end
  finish(q, id)
  call('HINCRBY', q.h, 'drop', 1)
  return {'dropped'}
end, {'allow-oom'})

-- A … queue, message, lease or '', kin, lease ms   -> {1}
write('syn_q_extend', function(K, A)
  local q, time, inc = both(K, A[3]), now(), inc_of(K[4])
  if not inc then return missing(q.name) end
  local id, s = held(q.b, inc, A[4], A[5], A[6], time)
  if not id then return fail('MESSAGE_NOT_FOUND', s) end
  s.deadline = time + tonumber(A[7])
  keep_state(q, id, s)
  call('ZADD', q.l, whole(s.deadline), id)
  sooner(q, s.deadline)
  return {1}
end, {'allow-oom'})

-- Take a delivery back that nobody received: the message returns to its place, and the try does not count.
-- A … queue, message, lease   -> {put back}
change('syn_q_return', function(K, A)
  local q, inc, time = both(K, A[3]), inc_of(K[4]), now()
  local id, s = held(q.b, inc or '', A[4], A[5], '', time)
  if not id then return {0} end
  call('ZREM', q.l, id)
  s.lease, s.holder, s.deadline = '0', '', 0
  keep_state(q, id, s)
  enter(q, id, s.place)
  return {1}
end, {'allow-oom'})

-- Say how many wait at a gateway. One that nobody waits at any more is not told of messages; a hint that it took and can't
-- use goes to the next.   A … queue, gateway, how many   -> {1}
change('syn_q_withdraw', function(K, A)
  local q = both(K, A[3])
  if call('EXISTS', q.h) == 0 then return {0} end
  if A[5] ~= '0' then
    call('HSET', q.h, 'w:' .. A[4], A[5] .. ' ' .. whole(now()))
    return {1}
  end
  call('HDEL', q.h, 'w:' .. A[4])
  if call('ZREM', q.w, A[4]) == 0 and call('ZCARD', q.r) > 0 then wake(q.h, q.w) end
  return {1}
end, {'allow-oom'})

-- The dead letters to put back: those that are named and ready, in order, or those that are next out.
local function chosen(letters, A, count)
  if #A == 4 then
    return call('ZRANGE', letters.r, 0, count - 1)
  end
  local named, inc = {}, inc_of(letters.h) .. '-'
  for a = 5, #A do
    local id = string.sub(A[a], 1, #inc) == inc and string.sub(A[a], #inc + 1)
    local where = id and call('ZSCORE', letters.r, id)
    if where then named[#named + 1] = {tonumber(where), id} end
  end
  table.sort(named, function(one, other) return one[1] < other[1] end)
  local ids = {}
  for i = 1, math.min(#named, count) do ids[i] = named[i][2] end
  return ids
end

local LETTERS = 67108864  -- bytes of dead letters that an atomic batch puts back

-- A … queue, most, then the ids of those that are meant, or none for all   -> {put back, 1 where there are more, 2
-- where not all that are meant were looked at, since the bodies of those before are BYTES}. An atomic batch has no request, and
-- puts back all.
write('syn_q_redrive', function(K, A)
  local q, letters = both(K, A[3])
  local time, h = now(), head(q.h)
  if not h then return missing(q.name) end
  local ready, room = call('ZCARD', letters.r), h.depth - h.count
  if ready == 0 then return {0, 0} end
  if room <= 0 then return fail('QUEUE_FULL', whole(h.depth)) end
  local count = math.min(ready, room, tonumber(A[4]))
  local ids, bytes, done = chosen(letters, A, count), 0, 0
  for _, letter in ipairs(ids) do
    if A[1] ~= '' and bytes >= BYTES then break end
    if bytes >= LETTERS then return fail('INVALID_REQUEST', 'an atomic batch on a cluster puts back at most ' .. LETTERS .. ' bytes') end
    call('ZREM', letters.r, letter)
    local _, rest = parts(call('HGET', letters.b, letter))
    bytes, done = bytes + #rest, done + 1
    finish(letters, letter)
    local id = add(q, time, string.sub(letter, -1), 'P', rest)
    enter(q, id, place(id))
  end
  return {done, done < #ids and 2 or ready > count and room > count and 1 or 0}
end)

-- A … queue   -> {purged}
write('syn_q_purge', function(K, A)
  local q, h = both(K, A[3]), head(K[4])
  if not h then return missing(q.name) end
  local purged = h.count
  call('UNLINK', q.b)
  call('UNLINK', q.r)
  call('UNLINK', q.l)
  call('UNLINK', q.d)
  h.count, h.due = 0, 0
  keep_head(q.h, h)
  call('ZREM', q.dues, q.name)
  return {purged}
end, {'allow-oom'})

-- A … queue   -> {1}
write('syn_q_delete', function(K, A)
  local q = both(K, A[3])
  if call('EXISTS', q.h) == 0 then return missing(q.name) end
  local all = call('HKEYS', q.h)
  for _, field in ipairs(all) do
    if string.sub(field, 1, 2) == 'w:' then call('SPUBLISH', q.base .. 'g:' .. string.sub(field, 3), 'q' .. q.name) end
  end
  for _, key in ipairs({q.h, q.b, q.r, q.l, q.d, q.w}) do call('UNLINK', key) end
  call('SREM', q.names, q.name)
  call('ZREM', q.dues, q.name)
  return {1}
end, {'allow-oom'})

-- A … queue   -> {depth, pending, delayed, consumers, published, consumed, acked, nacked, dead, dropped, age ms or -1}
change('syn_q_stats', function(K, A)
  local q, letters = both(K, A[3])
  local time, waiting, h = now(), 0, {}
  if call('EXISTS', q.h) == 0 then return missing(q.name) end
  settle(q, letters, time)
  local t = head(q.h)
  local all = call('HGETALL', q.h)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'w:' then
      local count, seen = string.match(all[i + 1], '^(%d+) (%d+)$')
      if time - tonumber(seen) < 10000 then waiting = waiting + tonumber(count) else call('HDEL', q.h, all[i]) end
    else
      h[all[i]] = tonumber(all[i + 1])
    end
  end
  local first = oldest(q)
  local s, age = first and state(q, first), -1
  if first then
    local delayed = s.lease == '0' and s.retries == 0 and s.deadline > 0
    age = time - (delayed and s.deadline or struct.unpack('>d', call('HGET', q.b, first)))
  end
  return {call('ZCARD', q.r), call('ZCARD', q.l), call('ZCARD', q.d), waiting, t.number - (h.mat or 0), t.con, t.ack, h.nak or 0,
    h.dead or 0, h.drop or 0, math.floor(age)}
end, {'allow-oom'})

-- K qh qb and the one of qr, ql, qd to look at   A queue, message to go on after or '', limit, '1' where it is qr
-- -> {inc, more, {id, body, letter, retries, due ms or 0, published ms}…}
read('syn_q_peek', function(K, A)
  local inc = inc_of(K[1])
  if not inc then return missing(A[1]) end
  local limit, first = tonumber(A[3]), 0
  if A[2] ~= '' then
    local size = #inc + 1
    local rank = string.sub(A[2], 1, size) == inc .. '-' and call('ZRANK', K[3], string.sub(A[2], size + 1))
    if not rank then return fail('MESSAGE_NOT_FOUND', A[2]) end
    first = rank + 1
  end
  local ids = call('ZRANGE', K[3], first, first + limit, 'WITHSCORES')
  local found, bytes = {inc, #ids / 2 > limit and 1 or 0}, 0
  for i = 1, math.min(#ids, 2 * limit), 2 do
    local got = call('HMGET', K[2], ids[i], ids[i] .. 's')
    bytes = bytes + #got[1]
    if bytes > BYTES and i > 1 then
      found[2] = 1
      break
    end
    local letter, rest = parts(got[1])
    found[#found + 1] = {ids[i], rest, letter, parse(ids[i], got[2]).retries, A[4] == '1' and '0' or ids[i + 1], published(got[1])}
  end
  return found
end)

-- Let happen what is due.   A … queue   -> {when something is due next, 0: nothing is}
change('syn_q_settle', function(K, A)
  local q, letters = both(K, A[3])
  if call('EXISTS', q.h) == 0 then return {0} end
  return {whole(settle(q, letters, now()))}
end, {'allow-oom'})

-- K QD   -> names of queues with something due
read('syn_dues', function(K) return call('ZRANGE', K[1], '-inf', now(), 'BYSCORE', 'LIMIT', 0, 100) end)
