-- ------------------------------------------------------------------------------------------------------ queues
--
-- qh  hash  s and f, see `counts` and `frame`; rules mr dl rd rb rm (max_retries, dead_letter, retry_delay, retry_backoff,
--           retry_max_delay), totals mat (of the numbers, those given to delayed ones) nak dead drop, and
--           w:<gateway> 'how many wait there, when it said so'
-- qb  hash  id -> published ms (8 bytes), 'P' or 'L' and a dead letter's letter, headers and value as the gateway packed
--           them; <id>s -> 'retries lease place deadline holder', only once it was leased or delayed (deadline without a
--           lease or retries: when its delay ended)
-- qr  zset  ready: place -> id               ql  zset  leased: deadline ms -> id      qd  zset  delayed: due ms -> id
-- qw  zset  gateways to be told of a message: since ms -> gateway
-- An id is '<number in hex><priority>', so the place of a fresh message follows from it. Users see '<inc>-<id>'.

-- The keys of a queue, which begin at K[first], with those of its partition.
local function queue(K, name, first, names, dues)
  return {name = name, names = names, dues = dues, base = string.match(K[first], '^[^}]*}:'), h = K[first], b = K[first + 1],
    r = K[first + 2], l = K[first + 3], d = K[first + 4], w = K[first + 5]}
end

-- What few calls need, so that it isn't sent with each: the partition's prefix and the queue's name, out of `qh`.
local function split(h) return string.match(h, '^([^}]*}:)qh:(.*)$') end

local function name_of(h) return select(2, split(h)) end

-- A prefix of ids for a queue that is made. The count tells apart those of one atomic batch, in which time stands still.
local incs = 0
local function new_inc(h)
  incs = incs + 1
  return string.sub(redis.sha1hex(h .. ' ' .. whole(micros()) .. ' ' .. incs), 1, 16)
end

local function missing(name) return fail('QUEUE_NOT_FOUND', name) end

-- ---- a queue's header: what every call reads stands in two fields, since each field that is read costs a node 3,000
-- instructions and each number in text 1,700

local COUNTS, FRAME = '>dddddd', '>ddBs'

-- What changes with each message: numbers given so far, messages held, ms before which nothing is due or 0, the last lease
-- given, totals of consumed and acknowledged.
local function counts(text) return struct.unpack(COUNTS, text) end

local function keep_counts(h, number, count, due, lease, con, ack)
  call('HSET', h, 's', struct.pack(COUNTS, number, count, due, lease, con, ack))
end

-- What rarely changes: max_depth, ack_deadline in ms, 1 where gateways may be registered or 0, inc: the prefix of ids.
local function frame(text) return struct.unpack(FRAME, text) end

local function framed(depth, deadline, wait, inc) return struct.pack(FRAME, depth, deadline, wait, inc) end

-- The header as a table, or nil where there is no queue; and that written back.
local function head(h)
  local got = call('HMGET', h, 's', 'f')
  if not got[1] then return nil end
  local t = {}
  t.number, t.count, t.due, t.lease, t.con, t.ack = counts(got[1])
  t.depth, t.deadline, t.wait, t.inc = frame(got[2])
  return t
end

local function keep_head(h, t)
  call('HSET', h, 's', struct.pack(COUNTS, t.number, t.count, t.due, t.lease, t.con, t.ack),
    'f', framed(t.depth, t.deadline, t.wait, t.inc))
end

local function inc_of(h)
  local text = call('HGET', h, 'f')
  return text and select(4, frame(text))
end

-- Whether a name is too long for '.dlq' to fit behind it.
local function too_long(name) return #name > 252 and string.sub(name, -4) ~= '.dlq' end

local function make(h, names, name, inc)
  local letters = string.sub(name, -4) == '.dlq'
  local s, f = struct.pack(COUNTS, 0, 0, 0, 0, 0, 0), framed(100000, 30000, 0, inc)
  call('HSET', h, 's', s, 'f', f, 'mr', 3, 'dl', letters and 0 or 1, 'rd', 0, 'rb', 2, 'rm', 3600000)
  call('SADD', names, name)
  return {s, f}
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

-- Take one registration, where there may be any, and send one hint; one of a gateway that does not listen here is passed
-- over.
local function wake(h, w)
  local base, name = split(h)
  local depth, deadline, wait, inc = frame(call('HGET', h, 'f'))
  while wait == 1 do
    local gateway = call('ZPOPMIN', w)[1]
    if not gateway then
      wait = 0
      call('HSET', h, 'f', framed(depth, deadline, wait, inc))
    elseif call('SPUBLISH', base .. 'g:' .. gateway, 'q' .. name) > 0 then
      return
    end
  end
end

-- Note that something is due at `due`.
local function sooner(q, due)
  local t = head(q.h)
  if t.due == 0 or due < t.due then
    t.due = due
    keep_head(q.h, t)
    call('ZADD', q.dues, whole(due), q.name)
  end
end

local function enter(q, id, where)
  call('ZADD', q.r, whole(where), id)
  wake(q.h, q.w)
end

local function delay(q, id, due)
  call('ZADD', q.d, whole(due), id)
  sooner(q, due)
end

local function add(q, time, priority, letter, rest)
  local t = head(q.h)
  t.number, t.count = t.number + 1, t.count + 1
  keep_head(q.h, t)
  local id = string.format('%x', t.number) .. priority
  call('HSET', q.b, id, struct.pack('>d', time) .. letter .. rest)
  return id
end

local function finish(q, id)
  call('ZREM', q.l, id)
  call('HDEL', q.b, id, id .. 's')
  local t = head(q.h)
  t.count = t.count - 1
  keep_head(q.h, t)
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
    make(letters.h, letters.names, letters.name, inc_of(q.h) .. 'd' .. whole(time % 1000000))
  end
  local there = head(letters.h)
  if there.count >= there.depth then
    local drop = oldest(letters)
    if drop then
      call('ZREM', letters.r, drop)
      finish(letters, drop)
      call('HINCRBY', letters.h, 'drop', 1)
    end
  end
  local _, rest = parts(call('HGET', q.b, id))
  local text = cmsgpack.pack({reason, q.name, s.retries + 1, inc_of(q.h) .. '-' .. id, math.floor(time / 1000)})
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
-- published enters behind those that came meanwhile, with this time as its deadline; one that was tried before has its place
-- kept in its state.
local function settle(q, letters, time)
  for _, id in ipairs(call('ZRANGE', q.l, '-inf', time, 'BYSCORE', 'LIMIT', 0, BATCH)) do
    give_up(q, letters, id, state(q, id), 'ack_deadline', time)
  end
  for _, id in ipairs(call('ZRANGE', q.d, '-inf', time, 'BYSCORE', 'LIMIT', 0, BATCH)) do
    call('ZREM', q.d, id)
    local kept = call('HGET', q.b, id .. 's')
    local s = parse(id, kept)
    if not kept then
      local t = head(q.h)
      t.number = t.number + 1
      keep_head(q.h, t)
      call('HINCRBY', q.h, 'mat', 1)
      s.place, s.deadline = (9 - tonumber(string.sub(id, -1))) * LEVEL + t.number, time
      keep_state(q, id, s)
    end
    enter(q, id, s.place)
  end
  local due = 0
  for _, times in ipairs({q.l, q.d}) do
    local head = call('ZRANGE', times, 0, 0, 'WITHSCORES')[2]
    if head and (due == 0 or tonumber(head) < due) then due = tonumber(head) end
  end
  local t = head(q.h)
  t.due = due
  keep_head(q.h, t)
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
