-- ------------------------------------------------------------------------------------------------------ queues
--
-- qh  hash  inc (prefix of ids), num (given so far), mat (of them to delayed ones), n (held), lease (the last given), due
--           (ms before which nothing is; 0: nothing is), wait (1 where gateways may be registered), rules mr ad md dl rd rb
--           rm (max_retries, ack_deadline, max_depth, dead_letter, retry_delay, retry_backoff, retry_max_delay), totals con
--           ack nak dead drop, and w:<gateway> 'how many wait there, when it said so'
-- qb  hash  id -> published ms (8 bytes), 'P' or 'L' and a dead letter's letter, headers and value as the gateway packed
--           them; <id>s -> 'retries lease place deadline holder', only once it was leased or delayed
-- qr  zset  ready: place -> id               ql  zset  leased: deadline ms -> id      qd  zset  delayed: due ms -> id
-- qw  zset  gateways to be told of a message: since ms -> gateway
-- An id is '<number in hex><priority>', so the place of a fresh message follows from it. Users see '<inc>-<id>'.

-- The keys of a queue, which begin at K[first], with those of its partition.
local function queue(K, name, first, names, dues)
  return {name = name, names = names, dues = dues, base = string.match(K[first], '^[^}]*}:'), h = K[first], b = K[first + 1],
    r = K[first + 2], l = K[first + 3], d = K[first + 4], w = K[first + 5]}
end

local function missing(name) return fail('QUEUE_NOT_FOUND', name) end

local function make(h, names, name, inc)
  local letters = string.sub(name, -4) == '.dlq'
  -- What is read and written most comes first: a small hash is looked through from its beginning.
  call('HSET', h, 'inc', inc, 'n', 0, 'due', 0, 'ack', 0, 'num', 0, 'md', 100000, 'lease', 0, 'ad', 30000, 'con', 0, 'mr', 3,
    'dl', letters and 0 or 1, 'rd', 0, 'rb', 2, 'rm', 3600000)
  call('SADD', names, name)
end

-- ---- messages

local function place(id)
  local size = #id
  return (9 - tonumber(string.sub(id, size))) * LEVEL + tonumber(string.sub(id, 1, size - 1), 16)
end

local function parse(id, text)
  if not text then return {retries = 0, lease = '0', place = place(id), deadline = 0, holder = ''} end
  local retries, lease, where, deadline, holder = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (.*)$')
  return {retries = tonumber(retries), lease = lease, place = tonumber(where), deadline = tonumber(deadline), holder = holder}
end

local function state(q, id) return parse(id, call('HGET', q.b, id .. 's')) end

local function written(s)
  return s.retries .. ' ' .. s.lease .. ' ' .. whole(s.place) .. ' ' .. whole(s.deadline) .. ' ' .. s.holder
end

local function keep_state(q, id, s) call('HSET', q.b, id .. 's', written(s)) end

-- Split a body: its letter or '', and headers with value.
local function parts(body)
  if string.sub(body, 9, 9) == 'P' then return '', string.sub(body, 10) end
  local size = struct.unpack('>I4', body, 10)
  return string.sub(body, 14, 13 + size), string.sub(body, 14 + size)
end

local function published(body) return whole((struct.unpack('>d', body))) end

-- ---- moving messages

-- Take one registration and send one hint; one of a gateway that does not listen here is passed over.
local function wake(base, h, w, name)
  while true do
    local gateway = call('ZPOPMIN', w)[1]
    if not gateway then return call('HDEL', h, 'wait') end
    if call('SPUBLISH', base .. 'g:' .. gateway, 'q' .. name) > 0 then return end
  end
end

-- Note that something is due at `due`.
local function sooner(q, due)
  local known = tonumber(call('HGET', q.h, 'due'))
  if known == 0 or due < known then
    call('HSET', q.h, 'due', whole(due))
    call('ZADD', q.dues, whole(due), q.name)
  end
end

local function enter(q, id, where)
  call('ZADD', q.r, whole(where), id)
  wake(q.base, q.h, q.w, q.name)
end

local function delay(q, id, due)
  call('ZADD', q.d, whole(due), id)
  sooner(q, due)
end

local function add(q, time, priority, letter, rest)
  local id = string.format('%x', call('HINCRBY', q.h, 'num', 1)) .. priority
  call('HINCRBY', q.h, 'n', 1)
  call('HSET', q.b, id, struct.pack('>d', time) .. letter .. rest)
  return id
end

local function finish(q, id)
  call('ZREM', q.l, id)
  call('HDEL', q.b, id, id .. 's')
  call('HINCRBY', q.h, 'n', -1)
end

-- The ready message that entered first, whatever its priority.
local function oldest(q)
  local found, least
  for level = 0, 9 do
    local head = call('ZRANGE', q.r, whole(level * LEVEL), '(' .. whole((level + 1) * LEVEL), 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    local number = head[2] and tonumber(head[2]) - level * LEVEL
    if number and (not least or number < least) then found, least = head[1], number end
  end
  return found
end

-- ---- giving up

-- Move a leased message to the dead letters, which let their oldest go when they are full.
local function bury(q, letters, id, s, reason, time)
  if call('EXISTS', letters.h) == 0 then
    make(letters.h, letters.names, letters.name, call('HGET', q.h, 'inc') .. 'd' .. whole(time % 1000000))
  end
  local held = call('HMGET', letters.h, 'md', 'n')
  if tonumber(held[2]) >= tonumber(held[1]) then
    local drop = oldest(letters)
    if drop then
      call('ZREM', letters.r, drop)
      finish(letters, drop)
      call('HINCRBY', letters.h, 'drop', 1)
    end
  end
  local _, rest = parts(call('HGET', q.b, id))
  local text = cmsgpack.pack({reason, q.name, s.retries + 1, call('HGET', q.h, 'inc') .. '-' .. id, math.floor(time / 1000)})
  finish(q, id)
  call('HINCRBY', q.h, 'dead', 1)
  local letter = add(letters, time, string.sub(id, -1), 'L' .. struct.pack('>I4', #text) .. text, rest)
  enter(letters, letter, place(letter))
end

-- End a lease that was not acknowledged: back to its place, at once or after a delay, or to the dead letters. A queue
-- without dead letters puts it back however often. `wait` is ms, or nil for the queue's own rule.
local function give_up(q, letters, id, s, reason, time, wait)
  local rules = call('HMGET', q.h, 'mr', 'dl', 'rd', 'rb', 'rm')
  if s.retries >= tonumber(rules[1]) and rules[2] == '1' then
    bury(q, letters, id, s, reason, time)
    return 'dead_lettered'
  end
  call('ZREM', q.l, id)
  s.retries, s.lease, s.holder = s.retries + 1, '0', ''
  if not wait then
    wait = tonumber(rules[3])
    if wait > 0 then wait = math.min(wait * tonumber(rules[4]) ^ (s.retries - 1), tonumber(rules[5])) end
  end
  keep_state(q, id, s)
  if wait > 0 then delay(q, id, math.floor(time + wait)) else enter(q, id, s.place) end
  return 'requeued'
end

-- End up to BATCH leases and delays that are due, and note when the next is. A message that was delayed when it was
-- published enters behind those that came meanwhile; one that was tried before has its place kept in its state.
local function settle(q, letters, time)
  for _, id in ipairs(call('ZRANGE', q.l, '-inf', time, 'BYSCORE', 'LIMIT', 0, BATCH)) do
    give_up(q, letters, id, state(q, id), 'ack_deadline', time)
  end
  for _, id in ipairs(call('ZRANGE', q.d, '-inf', time, 'BYSCORE', 'LIMIT', 0, BATCH)) do
    call('ZREM', q.d, id)
    local kept = call('HGET', q.b, id .. 's')
    local s = parse(id, kept)
    if not kept then
      call('HINCRBY', q.h, 'mat', 1)
      s.place = (9 - tonumber(string.sub(id, -1))) * LEVEL + call('HINCRBY', q.h, 'num', 1)
      keep_state(q, id, s)
    end
    enter(q, id, s.place)
  end
  local due = 0
  for _, times in ipairs({q.l, q.d}) do
    local head = call('ZRANGE', times, 0, 0, 'WITHSCORES')[2]
    if head and (due == 0 or tonumber(head) < due) then due = tonumber(head) end
  end
  call('HSET', q.h, 'due', whole(due))
  if due == 0 then call('ZREM', q.dues, q.name) else call('ZADD', q.dues, whole(due), q.name) end
  return due
end

-- Why a caller doesn't hold the lease of a message, in the contract's word; nil where it does. `lease` is the lease's
-- number, 0 for whoever has it, or '' for a caller of the holder's kin.
local function refusal(kept, lease, kin, time)
  if not kept then return 'settled' end
  local current, deadline, holder = string.match(kept, '^%d+ (%d+) %d+ (%d+) (.*)$')
  if current == '0' or tonumber(deadline) <= time then return 'lease_over' end
  if lease == '0' or lease == current then return nil end
  if lease ~= '' then return 'held_by_another' end
  if holder == '' or kin == '' or holder == kin then return nil end
  return 'lease_needed'
end

-- The id in what users see of it, or nil where it isn't one of this queue.
local function id_of(inc, text)
  local size = #inc + 1
  return string.sub(text, 1, size) == inc .. '-' and string.sub(text, size + 1) or nil
end

-- The id of a message whose lease the caller holds, and its state; or nil and why not.
local function held(b, inc, text, lease, kin, time)
  local id = id_of(inc, text)
  local kept = id and call('HGET', b, id .. 's')
  local why = refusal(kept, lease, kin, time)
  if why then return nil, why end
  return id, parse(id, kept)
end

-- ---- the three that are hot: each takes what many requests ask of one queue, and reads and writes each key once. What
-- Lua does costs a node more than the commands do: a `tonumber` or a table 1,500 instructions, HSET 8,000.

local levels = {}          -- priority -> where its places begin
for priority = 0, 9 do levels['' .. priority] = (9 - priority) * LEVEL end

-- What is remembered of the request at A[a].
local function known(K, A, a)
  if A[a + 2] == '0' then return nil end
  return recall(K[tonumber(A[a])] or '', A[a + 1], A[a + 2])
end

-- Settle the messages of which their callers hold the leases: for each of the places `asking` in A, `at` behind it a message,
-- its lease and the caller's kin.   -> for each why not, or false; how many were settled
local function acknowledge(b, l, inc, A, asking, at, time)
  local fields, reasons, ids, gone, over = {}, {}, {}, {}, {}
  for i = 1, #asking do fields[i] = (id_of(inc, A[asking[i] + at]) or '') .. 's' end
  local states = call('HMGET', b, unpack(fields))
  for i = 1, #fields do
    local field, a = fields[i], asking[i] + at
    local why = refusal(not over[field] and states[i], A[a + 1], A[a + 2], time)
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

-- K qh qb qr qd qw Q QD, memories…   A queue, inc of a new one, then (memory's place in K or 0, request, retried, priority,
-- delay ms, headers and value)…   -> for each {inc, id, position}, or {'QUEUE_FULL', max_depth}
change('syn_q_publish', function(K, A)
  local name, time, answers = A[1], now(), {}
  local h = call('HMGET', K[1], 'inc', 'md', 'num', 'n', 'wait', 'due')
  if not h[1] then
    make(K[1], K[6], name, A[2])
    h = {A[2], 100000, 0, 0, false, 0}
  end
  local inc, depth, number, count = h[1], tonumber(h[2]), tonumber(h[3]), tonumber(h[4])
  local stamp, texts, ready, later, noted, full, due = struct.pack('>d', time) .. 'P', {}, {}, nil, {}, nil, nil
  for a = 3, #A, 6 do
    local kept, answer = known(K, A, a), nil
    if kept then
      if string.sub(kept, 1, 1) == 'F' then
        answer = {'QUEUE_FULL', tonumber(string.sub(kept, 2))}
      else
        local first, id, position = string.match(kept, '^P(%S+) (%S+) (%d+)$')
        answer = {first, id, tonumber(position)}
      end
    elseif count >= depth then
      answer = {'QUEUE_FULL', depth}
      full = true
    else
      number, count = number + 1, count + 1
      local id, size = string.format('%x', number) .. A[a + 3], #texts
      texts[size + 1], texts[size + 2] = id, stamp .. A[a + 5]
      answer = {inc, id}
      if A[a + 4] ~= '0' then
        local from = time + tonumber(A[a + 4])
        later = later or {}
        later[#later + 1] = from
        later[#later + 1] = id
        due = due and math.min(due, from) or from
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
    local before = tonumber(h[6])
    if before == 0 or due < before then call('ZADD', K[7], due, name) else due = nil end
  end
  local behind = {}                          -- priority -> position of the last that was put in there
  for i = 1, #answers do
    local answer, a = answers[i], 6 * i - 3
    if #answer == 2 and answer[1] ~= 'QUEUE_FULL' then
      local priority = A[a + 3]
      if A[a + 4] ~= '0' then
        answer[3] = call('ZCOUNT', K[3], '-inf', '(' .. whole((10 - tonumber(priority)) * LEVEL)) + 1
      else
        local position = behind[priority]
        position = position and position + 1 or call('ZRANK', K[3], answer[2]) + 1
        behind[priority], answer[3] = position, position
      end
      note(noted, A[a], A[a + 1], 'P' .. inc .. ' ' .. answer[2] .. ' ' .. answer[3])
    elseif full and answer[1] == 'QUEUE_FULL' then
      note(noted, A[a], A[a + 1], 'F' .. answer[2])
    end
  end
  remember_all(K, noted, time)
  if due then
    call('HSET', K[1], 'num', number, 'n', count, 'due', due)
  elseif #texts > 0 then
    call('HSET', K[1], 'num', number, 'n', count)
  end
  if h[5] then
    local base = string.match(K[1], '^[^}]*}:')
    for _ = 1, math.min(#ready / 2, 8) do wake(base, K[1], K[5], name) end
  end
  return answers
end)

local PIECE = 2000         -- arguments of one command; unpack holds some thousands

-- A message as it is delivered.
local function delivery(id, body, retries, lease, deadline)
  local letter, rest = parts(body)
  return {id, rest, letter, retries, lease, deadline}
end

-- What was delivered before to a request that comes again, '<id> <lease> ' for each, as far as it still holds it.
local function delivered(b, done, time)
  local answer = {}
  for id, lease in string.gmatch(done, '(%S+) (%S+) ') do
    local got = call('HMGET', b, id, id .. 's')
    local s = got[1] and parse(id, got[2])
    if s and s.lease == lease and s.deadline > time then
      answer[#answer + 1] = delivery(id, got[1], s.retries, s.lease, whole(s.deadline))
    end
  end
  return answer
end

-- K qh qb qr ql qw Q QD, memories…   A queue, inc of a new one, gateway to be told or '', waiting since ms, how many wait,
-- inc that they have seen or '', then (memory's place in K or 0, request, retried, lease ms or '', holder, most, message to
-- acknowledge or '', its lease, kin)…   -> {'due'} where syn_q_settle must come first, {'gone'} where the queue they have
-- seen was deleted (it is not made again then), else for each a list of {id, body, letter, retries, lease, deadline ms}, or
-- why it doesn't hold what it acknowledges ('no_queue': there is none, and it isn't made); last the queue's inc and when
-- something is due. Where a list is empty, so are all that follow and asked for anything new, and the gateway is registered.
change('syn_q_consume', function(K, A)
  local name, us = A[1], micros()
  local time, answers = math.floor(us / 1000), {}
  local h = call('HMGET', K[1], 'inc', 'lease', 'ad', 'con', 'due', 'ack', 'n')
  if A[6] ~= '' and h[1] ~= A[6] then return {'gone'} end
  local there = h[1]
  if not there then
    h = {A[2], 0, 30000, 0, 0, 0, 0}
    for a = 7, #A, 9 do
      if A[a + 6] == '' and call('EXISTS', K[1]) == 0 then make(K[1], K[6], name, A[2]) end
    end
  end
  local inc, last, due, acked = h[1], tonumber(h[2]), tonumber(h[5]), 0
  if due > 0 and due <= time then return {'due'} end
  local asking, settling, reasons, wanted = {}, {}, {}, 0   -- places in A: to be served; to be settled, and why they aren't
  for a = 7, #A, 9 do
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
    answers[(a + 2) / 9] = answer
  end
  if #settling > 0 then
    local refused
    refused, acked = acknowledge(K[2], K[4], inc, A, settling, 6, time)
    for i = 1, #settling do reasons[settling[i]] = refused[i] end
    local all = asking
    asking = {}
    for _, a in ipairs(all) do
      if reasons[a] then
        answers[(a + 2) / 9] = reasons[a]
        wanted = wanted - tonumber(A[a + 5])
      else
        asking[#asking + 1] = a
      end
    end
  end
  local ids, got = wanted > 0 and call('ZPOPMIN', K[3], wanted) or {}, {}
  for from = 1, #ids, PIECE do
    local fields = {}
    for i = from, math.min(from + PIECE - 1, #ids), 2 do
      fields[#fields + 1] = ids[i]
      fields[#fields + 1] = ids[i] .. 's'
    end
    for i, text in ipairs(call('HMGET', K[2], unpack(fields))) do got[from + i - 1] = text end
  end
  local first, at, states, leases, noted, empty = due, 1, {}, {}, {}, false
  local asked, deadline, ends                -- of the request before
  for i = 1, #asking do
    local a = asking[i]
    local answer, taken = answers[(a + 2) / 9], ''
    if A[a + 3] ~= asked then
      asked = A[a + 3]
      deadline = time + tonumber(asked ~= '' and asked or h[3])
      ends = whole(deadline)
    end
    for m = 1, A[a + 5] == '1' and 1 or tonumber(A[a + 5]) do
      local id = ids[at]
      if not id then break end
      local state, where, retries = got[at + 1], ids[at + 1], 0
      if state then retries = tonumber(string.match(state, '^%d+')) end
      if string.find(where, '%D') then where = whole(tonumber(where)) end
      last = us > last and us or last + 1   -- never given twice, also where a failover took some back
      local lease = whole(last)
      states[at], states[at + 1] = id .. 's', retries .. ' ' .. lease .. ' ' .. where .. ' ' .. ends .. ' ' .. A[a + 4]
      leases[at], leases[at + 1] = ends, id
      taken = taken .. id .. ' ' .. lease .. ' '
      answer[m] = delivery(id, got[at], retries, lease, ends)
      at = at + 2
    end
    if #answer == 0 then empty = true elseif due == 0 or deadline < due then due = deadline end
    if #answer > 0 or reasons[a] == false then note(noted, A[a], A[a + 1], taken) end
  end
  for from = 1, at - 1, PIECE do
    local to = math.min(from + PIECE - 1, at - 1)
    call('HSET', K[2], unpack(states, from, to))
    call('ZADD', K[4], unpack(leases, from, to))
  end
  remember_all(K, noted, time)
  local con = tonumber(h[4]) + (at - 1) / 2
  if acked > 0 then
    call('HSET', K[1], 'lease', last, 'con', con, 'ack', tonumber(h[6]) + acked, 'n', tonumber(h[7]) - acked)
  elseif at > 1 then
    call('HSET', K[1], 'lease', last, 'con', con)
  end
  if due ~= first then
    call('HSET', K[1], 'due', due)
    call('ZADD', K[7], due, name)
  end
  if A[3] ~= '' then
    local left = tonumber(A[5])
    for _, answer in ipairs(answers) do if #answer > 0 then left = left - 1 end end
    if left > 0 then call('HSET', K[1], 'w:' .. A[3], whole(left) .. ' ' .. whole(time)) else call('HDEL', K[1], 'w:' .. A[3]) end
    if empty then
      call('ZADD', K[5], 'NX', A[4], A[3])
      call('HSET', K[1], 'wait', 1)
    end
  end
  answers[#answers + 1] = inc
  answers[#answers + 1] = whole(due)
  return answers
end)

-- K qh qb ql, memories…   A queue, then (memory's place in K or 0, request, retried, message, lease or '', kin)…
-- -> for each {1}, or {why not}, 'no_queue' where there is none: what took effect before it was deleted is answered so
change('syn_q_ack', function(K, A)
  local h = call('HMGET', K[1], 'inc', 'ack', 'n')
  local time, answers, asking = now(), {}, {}
  for a = 2, #A, 6 do
    if known(K, A, a) then
      answers[(a + 4) / 6] = {1}
    elseif not h[1] then
      answers[(a + 4) / 6] = {'no_queue'}
    else
      asking[#asking + 1] = a
    end
  end
  if #asking == 0 then return answers end
  local reasons, acked = acknowledge(K[2], K[3], h[1], A, asking, 3, time)
  local noted = {}
  for i, a in ipairs(asking) do
    answers[(a + 4) / 6] = {reasons[i] or 1}
    if not reasons[i] then note(noted, A[a], A[a + 1], '1') end
  end
  if acked > 0 then
    call('HSET', K[1], 'ack', tonumber(h[2]) + acked, 'n', tonumber(h[3]) - acked)
    remember_all(K, noted, time)
  end
  return answers
end, {'allow-oom'})
