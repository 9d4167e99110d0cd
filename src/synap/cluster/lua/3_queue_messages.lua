-- ------------------------------------------------------------------------------------------------------ queues: publish, consume, ack
--
-- Each takes what many requests ask of one queue, and reads and writes each key once. What Lua does costs a node as much as
-- the commands do: a `tonumber` or a table that grows 1,500 instructions, a table as the answer 6,500, HSET 8,000. So each has
-- a way for one request that nothing is unusual about, as most are, with hardly a table, and where it is one request, its
-- answer comes without a table around it.

local levels = {}          -- priority -> where its places begin
for priority = 0, 9 do levels['' .. priority] = (9 - priority) * LEVEL end
local positions = {}       -- position -> its text, since making one costs a node 3,200 instructions
for position = 1, 16 do positions[position] = '' .. position end

-- What is remembered of the request at A[a].
local function known(K, A, a)
  if A[a + 2] == '0' then return nil end
  return recall(K[tonumber(A[a])] or '', A[a + 1], A[a + 2])
end

-- Settle the messages of which their callers hold the leases: for each of the places `asking` in A, `at` behind it a message
-- and its lease, `by` behind it the caller's kin.   -> for each why not, or false; how many were settled
local function acknowledge(b, l, inc, A, asking, at, by, time)
  local fields, reasons, ids, gone, over = {}, {}, {}, {}, {}
  for i = 1, #asking do fields[i] = (id_of(inc, A[asking[i] + at]) or '') .. 's' end
  local states = call('HMGET', b, unpack(fields))
  for i = 1, #fields do
    local field, a = fields[i], asking[i]
    local why = refusal(not over[field] and states[i], A[a + at + 1], A[a + by], time)
    reasons[i] = why or false
    if not why then
      local id, size = string.sub(field, 1, -2), #ids
      over[field] = true
      ids[size + 1] = id
      gone[2 * size + 1], gone[2 * size + 2] = id, field
    end
  end
  if #ids > 0 then
    call('ZREM', l, unpack(ids))
    call('HDEL', b, unpack(gone))
  end
  return reasons, #ids
end

-- Settle one message as `acknowledge` does.   -> why not, or nil
local function settle_one(b, l, inc, message, lease, kin, time)
  local id = id_of(inc, message)
  local why = refusal(id and call('HGET', b, id .. 's'), lease, kin, time)
  if why then return why end
  call('ZREM', l, id)
  call('HDEL', b, id, id .. 's')
end

-- K qh qb qr qd qw Q QD, memories…   A (memory's place in K or 0, request, retried, priority, delay ms, headers and
-- value)…   -> {for each 'P<inc> <id> <position>'}, or 'F<max_depth>' where the queue is full; all are refused where it would
-- have to be made and `too_long` says no
change('syn_q_publish', function(K, A)
  local time, answers = now(), {}
  local h = call('HMGET', K[1], 's', 'f')
  if not h[1] then
    if too_long(name_of(K[1])) then return fail('INVALID_PAYLOAD') end
    h = make(K[1], K[6], name_of(K[1]), new_inc(K[1]))
  end
  local number, count, due, lease, con, ack = counts(h[1])
  local depth, _, wait, inc = frame(h[2])
  if SHORT_CUTS and #A == 6 and A[5] == '0' and count < depth and not known(K, A, 1) then
    number = number + 1
    local id = string.format('%x', number) .. A[4]
    call('HSET', K[2], id, struct.pack('>d', time) .. 'P' .. A[6])
    call('ZADD', K[3], levels[A[4]] + number, id)
    local position = call('ZRANK', K[3], id) + 1
    local answer = 'P' .. inc .. ' ' .. id .. ' ' .. (positions[position] or whole(position))
    remember_one(K[#K], A[2], answer, time)
    keep_counts(K[1], number, count + 1, due, lease, con, ack)
    if wait == 1 then wake(K[1], K[5]) end
    return answer
  end
  local stamp, texts, ready, later, noted, soonest = struct.pack('>d', time) .. 'P', {}, {}, nil, {}, nil
  for a = 1, #A, 6 do
    local answer = known(K, A, a)
    if not answer and count >= depth then
      answer = 'F' .. whole(depth)
      note(noted, A[a], A[a + 1], answer)
    elseif not answer then
      number, count = number + 1, count + 1
      local id, size = string.format('%x', number) .. A[a + 3], #texts
      texts[size + 1], texts[size + 2] = id, stamp .. A[a + 5]
      answer = {id, A[a + 3], A[a + 4]}
      if A[a + 4] ~= '0' then
        local from = time + A[a + 4]
        later = later or {}
        later[#later + 1] = from
        later[#later + 1] = id
        soonest = soonest and math.min(soonest, from) or from
      else
        size = #ready
        ready[size + 1], ready[size + 2] = levels[A[a + 3]] + number, id
      end
    end
    answers[#answers + 1] = answer
  end
  if #texts > 0 then call('HSET', K[2], unpack(texts)) end
  if #ready > 0 then call('ZADD', K[3], unpack(ready)) end
  if later then
    call('ZADD', K[4], unpack(later))
    if due == 0 or soonest < due then
      due = soonest
      call('ZADD', K[7], due, name_of(K[1]))
    end
  end
  local behind, a = {}, 1                    -- priority -> position of the last that was put in there
  for i = 1, #answers do
    local answer = answers[i]
    if type(answer) == 'table' then
      local id, priority, position = answer[1], answer[2], nil
      if answer[3] ~= '0' then
        position = call('ZCOUNT', K[3], '-inf', '(' .. whole((10 - tonumber(priority)) * LEVEL)) + 1
      else
        position = behind[priority]
        position = position and position + 1 or call('ZRANK', K[3], id) + 1
        behind[priority] = position
      end
      answer = 'P' .. inc .. ' ' .. id .. ' ' .. whole(position)
      answers[i] = answer
      note(noted, A[a], A[a + 1], answer)
    end
    a = a + 6
  end
  remember_all(K, noted, time)
  if #texts > 0 then keep_counts(K[1], number, count, due, lease, con, ack) end
  if wait == 1 then
    for _ = 1, math.min(#ready / 2, 8) do wake(K[1], K[5]) end
  end
  return #answers == 1 and answers[1] or answers
end)
failures['syn_q_publish@'] = function(answer)
  if string.sub(answer, 1, 1) == 'F' then return 'SYNAP QUEUE_FULL ' .. string.sub(answer, 2) end
end

-- What a ready message's state becomes with a lease: its new state but for the holder, and the lease.
local function leased(state, where, us, last, ends)
  local retries = state and string.match(state, '^%d+') or '0'
  if string.find(where, '%D') then where = whole(tonumber(where)) end
  last = us > last and us or last + 1       -- never given twice, also where a failover took some back
  local lease = whole(last)
  return retries .. ' ' .. lease .. ' ' .. where .. ' ' .. ends, lease, last
end

local PIECE = 2000         -- arguments of one command; unpack holds some thousands
local MESSAGES = 1000      -- that one call delivers at most to requests for many,
local BYTES = 8388608      -- and of their bodies; each request gets one all the same

-- What was delivered before to a request that comes again, '<id> <lease> ' for each, as far as it still holds it.
local function delivered(b, done, time)
  local answer = {}
  for id, lease in string.gmatch(done, '(%S+) (%S+) ') do
    local got = call('HMGET', b, id, id .. 's')
    local s = got[1] and parse(id, got[2])
    if s and s.lease == lease and s.deadline > time then
      answer[#answer + 1] = id .. ' ' .. string.match(got[2], '^%d+ %d+ %d+ %d+')
      answer[#answer + 1] = got[1]
    end
  end
  return answer
end

-- For the messages in `ids` from one place to another: the body and the state of each.
local function bodies_of(b, ids, first, last)
  local got = {}
  for from = first, last, PIECE do
    local fields = {}
    for i = from, math.min(from + PIECE - 1, last), 2 do
      fields[#fields + 1] = ids[i]
      fields[#fields + 1] = ids[i] .. 's'
    end
    for i, text in ipairs(call('HMGET', b, unpack(fields))) do got[from - first + i] = text end
  end
  return got
end

-- Take up to `wanted` messages out of those that are ready, fewer where they are more than one answer should hold, but not
-- fewer than `least`. Of those that may be large, few are read at once: it is known only then how large they are.
-- -> ids and places, bodies and states, whether it may be fewer for that
local function within_bounds(r, b, wanted, least)
  local few = math.max(least, math.min(wanted, MESSAGES))
  local ids, got, bytes, largest, cut = call('ZRANGE', r, 0, few - 1, 'WITHSCORES'), {}, 0, BYTES, false
  while #got < #ids and not cut do
    local size = math.max(1, math.min(8, math.floor((BYTES - bytes) / largest)))
    local some = bodies_of(b, ids, #got + 1, math.min(#got + 2 * size, #ids))
    if #got == 0 then largest = 1 end
    for i = 1, #some, 2 do
      bytes, largest = bytes + #some[i], math.max(largest, #some[i])
      cut = bytes > BYTES and #got >= 2 * least
      if cut then break end
      got[#got + 1], got[#got + 2] = some[i], some[i + 1]
    end
  end
  for i = #ids, #got + 1, -1 do ids[i] = nil end
  if #ids > 0 then call('ZPOPMIN', r, #ids / 2) end
  return ids, got, cut or few < wanted and #ids == 2 * few
end

-- Note how many wait at a gateway; where there was nothing for one of them, it is to be told of a message.
local function register_waiting(K, gateway, left, empty, time, kept)
  if left > 0 then call('HSET', K[1], 'w:' .. gateway, whole(left) .. ' ' .. whole(time)) else call('HDEL', K[1], 'w:' .. gateway) end
  if not empty then return end
  call('ZADD', K[5], 'NX', time, gateway)
  local depth, deadline, wait, inc = frame(kept)
  if wait == 0 then call('HSET', K[1], 'f', framed(depth, deadline, 1, inc)) end
end

-- K qh qb qr ql qw Q QD, memories…   A '' or '<gateway to be told> <how many wait> <inc that they have seen, or nothing>', then
-- (memory's place in K or 0, request, retried, lease ms or '', kin, most, message to acknowledge or '', its lease)…, of which a
-- lone one may lack the last two
-- -> {'due'} where syn_q_settle must come first, {'gone'} where the queue they have seen was deleted (it is not made again
-- then); else for each how many messages (below 0 where there may be more, which the answer should not hold) and, for each of
-- these, '<id> <state without its holder>' and its body; or why it doesn't hold what it acknowledges ('no_queue': there is none, and it isn't made, unless it did so before); last the
-- queue's inc and the ms after which something is due, 0 where nothing is. Where it is 0 messages, so it is for all that follow
-- and asked for anything new, and the gateway is registered, by the node's clock: those of gateways differ. One message for one
-- request is '<id> <state without its holder> <inc> ' and its body.
change('syn_q_consume', function(K, A)
  local us = micros()
  local time, answers = math.floor(us / 1000), {}
  local h = call('HMGET', K[1], 's', 'f')
  local there, gateway, waiting, seen = h[1], nil, nil, nil
  if A[1] ~= '' then gateway, waiting, seen = string.match(A[1], '^(%S+) (%d+) (.*)$') end
  if gateway and seen ~= '' and not (there and seen == select(4, frame(h[2]))) then return {'gone'} end
  if not there then
    for a = 2, #A, 8 do
      if not h[1] and ((A[a + 6] or '') == '' or known(K, A, a)) then
        if too_long(name_of(K[1])) then return fail('INVALID_PAYLOAD') end
        h = make(K[1], K[6], name_of(K[1]), new_inc(K[1]))
      end
    end
    if not h[1] then h = {struct.pack(COUNTS, 0, 0, 0, 0, 0, 0), framed(0, 0, 0, '')} end   -- all are refused
  end
  local number, count, due, last, con, ack = counts(h[1])
  local _, usual, _, inc = frame(h[2])
  if due > 0 and due <= time then return {'due'} end
  local acked = 0
  if SHORT_CUTS and #A <= 9 and there and A[7] == '1' and not known(K, A, 2) then
    if A[8] and A[8] ~= '' then
      local why = settle_one(K[2], K[4], inc, A[8], A[9], A[6], time)
      if why then return {why, inc, due == 0 and 0 or due - time} end
      acked = 1
    end
    local popped, answer, taken = call('ZPOPMIN', K[3]), {0, inc, due == 0 and 0 or due - time}, ''
    local id = popped[1]
    if id then
      local got = call('HMGET', K[2], id, id .. 's')
      local deadline = time + (A[5] ~= '' and tonumber(A[5]) or usual)
      local ends = whole(deadline)
      local state, lease
      state, lease, last = leased(got[2], popped[2], us, last, ends)
      call('HSET', K[2], id .. 's', state .. ' ' .. A[6])
      call('ZADD', K[4], ends, id)
      if due == 0 or deadline < due then
        due = deadline
        call('ZADD', K[7], due, name_of(K[1]))
      end
      con, taken, answer = con + 1, id .. ' ' .. lease .. ' ', id .. ' ' .. state .. ' ' .. inc .. ' ' .. got[1]
    end
    if id or acked == 1 then
      remember_one(K[#K], A[3], taken, time)
      keep_counts(K[1], number, count - acked, due, last, con, ack + acked)
    end
    if gateway then register_waiting(K, gateway, id and waiting - 1 or tonumber(waiting), not id, time, h[2]) end
    return answer
  end
  if #A == 7 then A[8], A[9] = '', '' end
  local asking, settling, reasons, wanted = {}, {}, {}, 0   -- places in A: to be served; to be settled, and why they aren't
  for a = 2, #A, 8 do
    local done, answer = known(K, A, a), {}
    local late = done and done ~= '' and A[a + 2] == ''     -- its caller asked again, and has the message by that
    if done and not late then answer = delivered(K[2], done, time) end
    if #answer == 0 and not late then
      if A[a + 6] ~= '' and not done and not there then
        answer = 'no_queue'
      else
        asking[#asking + 1] = a
        wanted = wanted + (A[a + 5] == '1' and 1 or tonumber(A[a + 5]))
        if A[a + 6] ~= '' and not done then settling[#settling + 1] = a end
      end
    end
    answers[a] = answer
  end
  if #settling > 0 then
    local refused
    refused, acked = acknowledge(K[2], K[4], inc, A, settling, 6, 4, time)
    for i = 1, #settling do reasons[settling[i]] = refused[i] end
    local all = asking
    asking = {}
    for _, a in ipairs(all) do
      if reasons[a] then
        answers[a] = reasons[a]
        wanted = wanted - tonumber(A[a + 5])
      else
        asking[#asking + 1] = a
      end
    end
  end
  local ids, got, cut = {}, {}, false
  if wanted > #asking then
    ids, got, cut = within_bounds(K[3], K[2], wanted, #asking)
  elseif wanted > 0 then
    ids = call('ZPOPMIN', K[3], wanted)
    if #ids > 0 then got = bodies_of(K[2], ids, 1, #ids) end
  end
  local first, at, states, leases, noted, empty, less = due, 1, {}, {}, {}, false, {}
  local asked, deadline, ends                -- of the request before
  for i = 1, #asking do
    local a = asking[i]
    local answer, taken = answers[a], ''
    if A[a + 3] ~= asked then
      asked = A[a + 3]
      deadline = time + (asked ~= '' and tonumber(asked) or usual)
      ends = whole(deadline)
    end
    local most = A[a + 5] == '1' and 1 or tonumber(A[a + 5])
    for m = 1, cut and math.min(most, (#ids - at + 1) / 2 - (#asking - i)) or most do
      local id = ids[at]
      if not id then break end
      local state, lease
      state, lease, last = leased(got[at + 1], ids[at + 1], us, last, ends)
      states[at], states[at + 1] = id .. 's', state .. ' ' .. A[a + 4]
      leases[at], leases[at + 1] = ends, id
      taken = taken .. id .. ' ' .. lease .. ' '
      answer[2 * m - 1], answer[2 * m] = id .. ' ' .. state, got[at]
      at = at + 2
    end
    if cut and #answer < 2 * most then less[a] = true end
    if #answer == 0 then empty = true elseif due == 0 or deadline < due then due = deadline end
    if #answer > 0 or reasons[a] == false then note(noted, A[a], A[a + 1], taken) end
  end
  for from = 1, at - 1, PIECE do
    local to = math.min(from + PIECE - 1, at - 1)
    call('HSET', K[2], unpack(states, from, to))
    call('ZADD', K[4], unpack(leases, from, to))
  end
  remember_all(K, noted, time)
  if acked > 0 or at > 1 then keep_counts(K[1], number, count - acked, due, last, con + (at - 1) / 2, ack + acked) end
  if due ~= first then call('ZADD', K[7], due, name_of(K[1])) end
  local flat, left = {}, tonumber(waiting)
  for a = 2, #A, 8 do
    local answer = answers[a]
    if left and #answer > 0 then left = left - 1 end
    if type(answer) == 'string' then
      flat[#flat + 1] = answer
    else
      flat[#flat + 1] = (less[a] and -1 or 1) * #answer / 2
      for i = 1, #answer do flat[#flat + 1] = answer[i] end
    end
  end
  if gateway then register_waiting(K, gateway, left, empty, time, h[2]) end
  if #A == 9 and #flat == 3 and flat[1] == 1 then return flat[2] .. ' ' .. inc .. ' ' .. flat[3] end
  flat[#flat + 1] = inc
  flat[#flat + 1] = due == 0 and 0 or due - time
  return flat
end, {'allow-oom'})

-- K qh qb ql, memories…   A (memory's place in K or 0, request, retried, message, lease or '', kin)…
-- -> {for each 1, or why not}, 'no_queue' where there is none: what took effect before it was deleted is answered so
change('syn_q_ack', function(K, A)
  local h, time = call('HMGET', K[1], 's', 'f'), now()
  if SHORT_CUTS and #A == 6 and h[1] and not known(K, A, 1) then
    local why = settle_one(K[2], K[3], select(4, frame(h[2])), A[4], A[5], A[6], time)
    if why then return why end
    local number, count, due, lease, con, ack = counts(h[1])
    keep_counts(K[1], number, count - 1, due, lease, con, ack + 1)
    remember_one(K[#K], A[2], '1', time)
    return 1
  end
  local answers, asking = {}, {}
  for a = 1, #A, 6 do
    if known(K, A, a) then
      answers[(a + 5) / 6] = 1
    elseif not h[1] then
      answers[(a + 5) / 6] = 'no_queue'
    else
      asking[#asking + 1] = a
    end
  end
  if #asking == 0 then return #answers == 1 and answers[1] or answers end
  local reasons, acked = acknowledge(K[2], K[3], select(4, frame(h[2])), A, asking, 3, 5, time)
  local noted = {}
  for i, a in ipairs(asking) do
    answers[(a + 5) / 6] = reasons[i] or 1
    if not reasons[i] then note(noted, A[a], A[a + 1], '1') end
  end
  if acked > 0 then
    local number, count, due, lease, con, ack = counts(h[1])
    keep_counts(K[1], number, count - acked, due, lease, con, ack + acked)
    remember_all(K, noted, time)
  end
  return #answers == 1 and answers[1] or answers
end, {'allow-oom'})
failures['syn_q_ack@'] = function(answer)
  if answer == 'no_queue' then return 'SYNAP QUEUE_NOT_FOUND' end
  if answer ~= 1 then return 'SYNAP MESSAGE_NOT_FOUND ' .. answer end
end
