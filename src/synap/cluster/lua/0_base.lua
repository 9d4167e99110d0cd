-- Synap on a Valkey or Redis Cluster: every change of a key, a queue or a room is one call of a function below.
-- The files of this folder are one library, in the order of their numbers; `functions.py` puts the shebang line before
-- them and replaces @ in the functions' names by the library's version, so that two versions can be loaded at once.
--
-- NAMES AND KEYS. Each name belongs to one of P partitions. `B` is 'syn:{tag}:', whose tag puts all of a partition's keys
-- in one slot. docs/cluster.md explains the shape of each key:
--   B k:<key> kx kt              key-value
--   B Q QD, B qh: qb: qr: ql: qd: qw:<queue>   queues
--   B R, B sh: se: ss:<room>     rooms
--   B m:<session>                request -> the answer it was given, a mark, a minute; expires MEMORY ms after the session's
--                                last write, or a minute later
--   channels  B g:<gateway>      'q<queue>' there is something, or it was deleted; 't…' a topic's message
--             B ss:<room>        the event itself, 'gone <inc>', or 'over <number> <name>'
--
-- ARGUMENTS. K are keys, A is text. All keys are declared: while a slot is moved key by key, an undeclared one would look
-- as if it were empty. Where a function is registered with `write`, K[1] is the memory of answers, A[1] the request's
-- number ('': not remembered) and A[2] '1' where the request may have been executed before, '0' where nobody but this
-- caller can have made it, else ''.
--
-- A FULL NODE accepts the functions with `allow-oom`: what frees memory, or is needed to and writes little, as the commands'
-- flag SPARING says for a full disk.
--
-- TRAPS. `redis.call` does not exist while a library loads. Numbers pass through doubles, INCRBY's answer included. Every
-- change goes through `call`, which an atomic batch replaces; a change past it would not be rolled back.

local call
call = function(...)
  call = redis.call
  return call(...)
end

local LEVEL = 2 ^ 49      -- places of one priority; (9 - priority) * LEVEL + number is exact in a double
local MEMORY = 600000     -- ms that answers are remembered after the last one of their session
local RENEWAL = 60000     -- ms after which a memory's expiry is put off
local MARK = '!'          -- in a memory of answers: a second try came before the first
local BATCH = 32          -- leases or delays that one call ends
local SHORT_CUTS = true    -- false, as a test has it: what is usual goes the way of all else, to the same effect
local bodies = {}         -- function -> what an atomic batch runs
local failures = {}       -- function -> what says of its answer why an atomic batch fails, where that is no error

-- A whole number as text. `redis.call` writes whole numbers like that by itself; `..` and a function's answer don't.
local function whole(number) return string.format('%d', number) end

local function fail(code, text) return redis.error_reply('SYNAP ' .. code .. ' ' .. (text or '')) end

local function micros()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]       -- text in a sum costs less than `tonumber`
end

local function now() return math.floor(micros() / 1000) end

-- Put off when a memory expires. Never to a sooner time than before: where the clock went back, as that of another primary
-- may, what was said before must still be true.
local function put_off(memory)
  if call('PEXPIRE', memory, MEMORY + RENEWAL, 'GT') == 0 then call('PEXPIRE', memory, MEMORY + RENEWAL, 'NX') end
end

-- Return what is remembered of a request that was executed before. The HSET is a write, so that a WAIT behind this call
-- covers the one it stands for; PEXPIRE isn't always.
-- A second try may come before the first, which another gateway still has on its way. The mark says that there was one:
-- from then on first tries of this session are looked for too.
local function recall(memory, request, retried)
  if retried == '0' or request == '' then return nil end
  if retried == '' and call('HEXISTS', memory, MARK) == 0 then return nil end
  local kept = call('HGET', memory, request)
  if kept then
    call('HSET', memory, request, kept)
    put_off(memory)
    return kept
  end
  if retried == '1' then
    call('HSET', memory, MARK, '')
    put_off(memory)
  end
  return nil
end

-- Keep what is remembered of a request. A PEXPIRE each time would go to replicas and files each time.
local function remember(memory, request, text)
  call('HSET', memory, request, text)
  if call('PTTL', memory) < MEMORY then put_off(memory) end
end

-- The same for the many requests of one call: note what is to be remembered by the place of its memory in K, then write
-- that of each memory at once.
local function note(noted, place, request, text)
  if request == '' then return end
  local fields = noted[place]
  if not fields then
    noted[place] = {request, text}
  else
    local size = #fields
    fields[size + 1], fields[size + 2] = request, text
  end
end

-- A memory has a field for the minute in which its expiry was last put off, so that this need not be done each time: where
-- HSET adds more fields than requests, the minute is new, or the memory is.
local minute, field
local function minute_field(time)
  local this = math.floor(time / RENEWAL)
  if this ~= minute then minute, field = this, '#' .. this end
  return field
end

local function renew(memory)
  put_off(memory)
  local former = {}
  for i = 1, MEMORY / RENEWAL + 1 do former[i] = '#' .. (minute - i) end
  call('HDEL', memory, unpack(former))
end

local function remember_all(K, noted, time)
  local this = minute_field(time)
  for place, fields in pairs(noted) do
    local memory = K[tonumber(place)]
    if call('HSET', memory, this, '', unpack(fields)) > #fields / 2 then renew(memory) end
  end
end

-- The same for the one request of a call.
local function remember_one(memory, request, text, time)
  if request ~= '' and call('HSET', memory, minute_field(time), '', request, text) > 1 then renew(memory) end
end

local function register(name, flags, callback)
  redis.register_function{function_name = name .. '@', flags = flags, callback = callback}
end

-- Register a function that changes something and takes effect once for each request. A text that begins with ASCII is
-- the cheapest answer: a table costs 6,500 instructions more, and 5,500 to be packed.
local function write(name, body, flags)
  bodies[name .. '@'] = body
  register(name, flags or {}, function(K, A)
    local kept = recall(K[1], A[1], A[2])
    if kept then return string.find(kept, '^[\128-\255]') and cmsgpack.unpack(kept) or kept end
    local answer = body(K, A)
    if A[1] == '' then return answer end
    if type(answer) == 'string' then
      remember(K[1], A[1], answer)
    elseif not answer.err then
      remember(K[1], A[1], cmsgpack.pack(answer))
    end
    return answer
  end)
end

-- Register a function that changes something and may be executed any number of times.
local function change(name, body, flags)
  bodies[name .. '@'] = body
  register(name, flags or {}, body)
end

local function read(name, body)
  bodies[name .. '@'] = body
  register(name, {'no-writes'}, body)
end

-- K meta   A partitions, shape of the keys, secret of the cursors   -> what is kept: {partitions, shape, secret}
change('syn_open', function(K, A)
  call('HSETNX', K[1], 'partitions', A[1])
  call('HSETNX', K[1], 'shape', A[2])
  call('HSETNX', K[1], 'secret', A[3])
  return call('HMGET', K[1], 'partitions', 'shape', 'secret')
end, {'allow-oom'})

-- K sweeper   A gateway, lease ms   -> 1 where this gateway sweeps
change('syn_sweeper', function(K, A)
  local holder = call('GET', K[1])
  if holder and holder ~= A[1] then return 0 end
  call('SET', K[1], A[1], 'PX', A[2])
  return 1
end, {'allow-oom'})
