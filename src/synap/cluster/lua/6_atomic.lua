-- ------------------------------------------------------------------------------------------------------ atomic batches
--
-- All or nothing in one partition. The commands run one after the other through a `call` that notes how each change is
-- taken back. SPUBLISH, XADD and XTRIM, which nothing takes back, wait until all have succeeded; so stream.history can't
-- follow stream.publish of the same room, and the gateway refuses that.

local CHANGES = 200000    -- the most that one makes: the node stands still for about a second
local ANSWERS = 67108864  -- bytes of the answers of one, about: the node holds them three times, and copies as often
local REPLACED = 134217728 -- bytes of values that one replaces or deletes, about: they are copied, to take the changes back

-- About how many bytes an answer takes.
local function weigh(answer)
  if type(answer) == 'string' then return 64 + #answer end
  local bytes = 64
  if type(answer) == 'table' then
    for _, part in ipairs(answer) do bytes = bytes + weigh(part) end
  end
  return bytes
end

-- `state.refused` becomes why a change is too much, also where a command catches the error.
local function logged(undos, later, state)
  local raw, bytes = redis.call, 0
  local function refuse(why)
    state.refused = why
    error({err = why})
  end
  local function undo(...)
    if #undos >= CHANGES then
      refuse('SYNAP INVALID_REQUEST an atomic batch on a cluster makes at most ' .. whole(CHANGES) .. ' changes')
    end
    undos[#undos + 1] = {...}
  end
  local function hold(size)
    bytes = bytes + size
    if bytes > REPLACED then refuse('SYNAP PAYLOAD_TOO_LARGE ' .. whole(REPLACED) .. ' replaced') end
  end
  local function zset(key, member)
    local score = raw('ZSCORE', key, member)
    if score then undo('ZADD', key, score, member) else undo('ZREM', key, member) end
  end
  local function field(key, name)
    local value = raw('HGET', key, name)
    if value then
      hold(#value)
      undo('HSET', key, name, value)
    else
      undo('HDEL', key, name)
    end
  end
  local kept = {}        -- keys that are restored as they were at first, whatever else happens to them
  local function text(key)
    if kept[key] then return end
    kept[key] = true
    local value, due = raw('GET', key), raw('PEXPIRETIME', key)
    if not value then
      undo('UNLINK', key)
    else
      hold(#value)
      if due >= 0 then undo('SET', key, value, 'PXAT', due) else undo('SET', key, value) end
    end
  end
  local function expiry(key)
    if kept[key] then return end
    local due = raw('PEXPIRETIME', key)
    if due >= 0 then undo('PEXPIREAT', key, due) elseif due == -1 then undo('PERSIST', key) end
  end
  local inverse = {
    HSET = function(key, ...)
      local pairs_given = {...}
      for i = 1, #pairs_given, 2 do field(key, pairs_given[i]) end
    end,
    HSETNX = field,
    HINCRBY = field,
    HDEL = function(key, ...) for _, name in ipairs({...}) do field(key, name) end end,
    SADD = function(key, member) if raw('SISMEMBER', key, member) == 0 then undo('SREM', key, member) end end,
    SREM = function(key, member) if raw('SISMEMBER', key, member) == 1 then undo('SADD', key, member) end end,
    ZADD = function(key, ...)
      local given = {...}
      for i = #given, 2, -2 do zset(key, given[i]) end
    end,
    ZREM = function(key, ...) for _, member in ipairs({...}) do zset(key, member) end end,
    ZPOPMIN = function(key, count)
      local head = raw('ZRANGE', key, 0, (tonumber(count) or 1) - 1, 'WITHSCORES')
      for i = 1, #head, 2 do undo('ZADD', key, head[i + 1], head[i]) end
    end,
    SET = text,
    GETSET = text,
    INCRBY = text,
    PEXPIREAT = expiry,
    PERSIST = expiry,
    UNLINK = function(key)
      local kind = raw('TYPE', key).ok
      if kind == 'string' then return text(key) end
      if kind == 'none' or kept[key] then return end
      kept[key] = true
      hold(raw('MEMORY', 'USAGE', key, 'SAMPLES', 100))     -- before it is copied
      undo('RESTORE!', key, raw('DUMP', key))
    end,
  }
  local put_off = {}      -- streams that wait
  return function(name, ...)
    local key = ...
    if name == 'SPUBLISH' or name == 'XTRIM' or name == 'XADD' then
      later[#later + 1] = {name, ...}
      put_off[key] = name ~= 'SPUBLISH' or put_off[key]
      return 1
    end
    if name == 'UNLINK' and put_off[key] then      -- what waits goes with its stream
      for i = #later, 1, -1 do
        if later[i][2] == key and later[i][1] ~= 'SPUBLISH' then table.remove(later, i) end
      end
      put_off[key] = nil
    end
    local note = inverse[name]
    if note then note(...) end
    return raw(name, ...)
  end
end

local function roll_back(undos)
  for i = #undos, 1, -1 do
    local undo = undos[i]
    if undo[1] == 'RESTORE!' then
      redis.call('UNLINK', undo[2])
      redis.call('RESTORE', undo[2], 0, undo[3])
    else
      redis.call(unpack(undo))
    end
  end
end

-- K all keys, the memory first   A request, retried, then (function or '' to fail here, how many keys, their places in
-- K…, how many arguments, arguments…)…   -> {0, answer…}, or {place of the one that failed, its error}
local function atomic(K, A)
  local undos, later, state, answers, a, item, bytes, failed = {}, {}, {}, {0}, 3, 0, 0, nil
  local usual = call
  call = logged(undos, later, state)
  while a <= #A and not failed do
    item = item + 1
    local name, keys, arguments = A[a], {}, {}
    local body, failure = bodies[name], failures[name]
    local count = tonumber(A[a + 1])
    for i = 1, count do keys[i] = K[tonumber(A[a + 1 + i])] end
    a = a + 2 + count
    count = tonumber(A[a])
    for i = 1, count do arguments[i] = A[a + i] end
    a = a + 1 + count
    if not body then
      failed = 'SYNAP ABORTED'
    else
      local fine, answer = pcall(body, keys, arguments)
      if fine then
        bytes = bytes + weigh(answer)
        failed = type(answer) == 'table' and answer.err or failure and failure(answer) or nil
        if not failed and bytes > ANSWERS then failed = 'SYNAP PAYLOAD_TOO_LARGE ' .. whole(ANSWERS) .. ' answers' end
      else
        failed = type(answer) == 'table' and answer.err or tostring(answer)
        if string.sub(failed, 1, 6) ~= 'SYNAP ' then failed = 'ERR ' .. failed end
      end
      failed = state.refused or failed
      answers[#answers + 1] = answer
    end
  end
  call = usual
  if failed then
    roll_back(undos)
    return {item, failed}
  end
  for _, effect in ipairs(later) do redis.call(unpack(effect)) end
  return answers
end

write('syn_atomic', atomic)
write('syn_atomic_sparing', atomic, {'allow-oom'})     -- of commands that are accepted on a full node
