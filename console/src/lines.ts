/** The Python line and the command line that do what a button does. Tests run both. */
import { encode, Raw, tokens } from "./wire/json";

type Payload = Record<string, unknown>;

export interface Lines {
  python: string;
  shell: string;
}

// ---- Python

export function pythonText(text: string): string {
  let out = '"';
  for (const one of text) {
    const code = one.codePointAt(0)!;
    if (one === '"' || one === "\\") out += `\\${one}`;
    else if (one === "\n") out += "\\n";
    else if (one === "\t") out += "\\t";
    else if (code < 32 || (code >= 127 && code < 160)) out += `\\x${code.toString(16).padStart(2, "0")}`;
    else if ((code >= 0xd800 && code < 0xe000) || code === 0x2028 || code === 0x2029 || code === 0xfeff) out += `\\u${code.toString(16)}`;
    else out += one;
  }
  return `${out}"`;
}

const LITERALS: Record<string, string> = { true: "True", false: "False", null: "None" };

export function python(thing: unknown): string {
  let line = "";
  for (const token of tokens(encode(thing))) {
    if (token.kind === "string" || token.kind === "key") line += pythonText(JSON.parse(token.text) as string);
    else if (token.kind === "literal") line += LITERALS[token.text];
    else if (token.kind === "punctuation") line += token.text === "," || token.text === ":" ? `${token.text} ` : token.text;
    else line += token.text;
  }
  return line;
}

function call(method: string, positional: unknown[], keywords: Payload = {}): string {
  const given = Object.entries(keywords).filter(([, value]) => value !== undefined && value !== null);
  return `client.${method}(${[...positional.map(python), ...given.map(([name, value]) => `${name}=${python(value)}`)].join(", ")})`;
}

// ---- the shell

export function quote(text: string): string {
  if (/^[\w@%+=:,./-]+$/.test(text)) return text;
  if (/[\x00-\x1f\x7f]/.test(text)) {
    const inside = text.replace(/[\x00-\x1f\x7f'\\]/g, (one) => (one === "\n" ? "\\n" : one === "\t" ? "\\t" : one === "'" ? "\\'" : one === "\\" ? "\\\\" : `\\x${one.charCodeAt(0).toString(16).padStart(2, "0")}`));
    return `$'${inside}'`;
  }
  return `'${text.replace(/'/g, "'\\''")}'`;
}

/** Copy the data of this service into a new directory. */
export const backupLine = (): string => `synap backup ${quote(location.origin)} synap-backup`;

/** A stored value as an argument: JSON, or a text that the command line takes for a text. */
function argument(thing: unknown): string {
  const text = encode(thing);
  if (text.startsWith('"')) {
    const plain = JSON.parse(text) as string;
    if (/^[A-Za-z][^\x00-\x1f]*$/.test(plain) && !["true", "false", "null", "NaN", "Infinity"].includes(plain)) return plain;
  }
  return text;
}

type Option = [flag: string, value: unknown];

function command(words: string, positional: string[], options: Option[] = []): string {
  const parts = [`synap ${words}`];
  for (const [flag, value] of options) {
    if (value === undefined || value === null || value === false) continue;
    if (value === true) parts.push(flag);
    else parts.push(`${flag} ${quote(String(value))}`);
  }
  if (positional.some((one) => one.startsWith("-"))) parts.push("--");
  return [...parts, ...positional.map(quote)].join(" ");
}

const headers = (flag: string, given: unknown): Option[] =>
  Object.entries((given ?? {}) as Record<string, string>).map(([name, text]) => [flag, `${name}=${text}`]);

const text = (thing: unknown): string => String(thing);

const TABLE: Record<string, (p: Payload) => Lines> = {
  "kv.set": (p) => ({
    python: call("kv.set", [p.key, p.value], { ttl: p.ttl, nx: p.nx || undefined, xx: p.xx || undefined, if_value: p.if_value, keep_ttl: p.keep_ttl || undefined }),
    shell: command("kv set", [text(p.key), argument(p.value)], [["--ttl", p.ttl], ["--nx", p.nx], ["--xx", p.xx], ["--if-value", p.if_value === undefined ? undefined : argument(p.if_value)], ["--keep-ttl", p.keep_ttl]]),
  }),
  "kv.get": (p) => ({ python: call("kv.get", [p.key]), shell: command("kv get", [text(p.key)]) }),
  "kv.del": (p) => ({ python: call("kv.delete", p.keys as unknown[]), shell: command("kv del", p.keys as string[]) }),
  "kv.exists": (p) => ({ python: call("kv.exists", [p.key]), shell: command("kv exists", [text(p.key)]) }),
  "kv.incr": (p) => ({ python: call("kv.incr", [p.key], { amount: p.amount }), shell: command("kv incr", [text(p.key)], [["--amount", p.amount]]) }),
  "kv.decr": (p) => ({ python: call("kv.decr", [p.key], { amount: p.amount }), shell: command("kv decr", [text(p.key)], [["--amount", p.amount]]) }),
  "kv.expire": (p) => ({ python: call("kv.expire", [p.key, p.ttl]), shell: command("kv expire", [text(p.key), text(p.ttl)]) }),
  "kv.persist": (p) => ({ python: call("kv.persist", [p.key]), shell: command("kv persist", [text(p.key)]) }),
  "kv.ttl": (p) => ({ python: call("kv.ttl", [p.key]), shell: command("kv ttl", [text(p.key)]) }),
  "kv.scan": (p) => ({ python: call("kv.scan", p.prefix ? [p.prefix] : [], { count: p.count }), shell: command("kv scan", p.prefix ? [text(p.prefix)] : []) }),
  "kv.mget": (p) => ({ python: call("kv.mget", p.keys as unknown[]), shell: command("kv mget", p.keys as string[]) }),
  "queue.create": (p) => {
    const config = (p.config ?? {}) as Payload;
    const options: Option[] = Object.entries(config).map(([name, value]) => {
      const flag = name.replace(/_/g, "-");
      return name === "dead_letter" ? [value ? "--dead-letter" : "--no-dead-letter", true] : [`--${flag}`, value];
    });
    return { python: call("queue.create", [p.queue], config), shell: command("queue create", [text(p.queue)], options) };
  },
  "queue.delete": (p) => ({ python: call("queue.delete", [p.queue]), shell: command("queue delete", [text(p.queue)]) }),
  "queue.purge": (p) => ({ python: call("queue.purge", [p.queue]), shell: command("queue purge", [text(p.queue)]) }),
  "queue.publish": (p) => ({
    python: call("queue.publish", [p.queue, p.message], { priority: p.priority, headers: p.headers, delay: p.delay || undefined }),
    shell: command("queue publish", [text(p.queue), argument(p.message)], [["--priority", p.priority], ...headers("--header", p.headers), ["--delay", p.delay || undefined]]),
  }),
  "queue.peek": (p) => ({
    python: call("queue.peek", [p.queue], { state: p.state, after: p.after, limit: p.limit }),
    shell: command("queue peek", [text(p.queue)], [["--state", p.state], ["--after", p.after], ["--limit", p.limit]]),
  }),
  "queue.consume": (p) => ({
    python: call("queue.consume", [p.queue], { timeout: p.timeout, ack_deadline: p.ack_deadline }),
    shell: command("queue consume", [text(p.queue)], [["--timeout", p.timeout], ["--ack-deadline", p.ack_deadline]]),
  }),
  "queue.ack": (p) => ({
    python: call("queue.ack", [p.queue, p.message_id], { lease: p.lease }),
    shell: command("queue ack", [text(p.queue), text(p.message_id)], [["--lease", p.lease]]),
  }),
  "queue.nack": (p) => ({
    python: call("queue.nack", [p.queue, p.message_id], { requeue: p.requeue, delay: p.delay, lease: p.lease }),
    shell: command("queue nack", [text(p.queue), text(p.message_id)], [[p.requeue === false ? "--no-requeue" : "--requeue", true], ["--delay", p.delay], ["--lease", p.lease]]),
  }),
  "queue.redrive": (p) => ({
    python: call("queue.redrive", [p.queue], { limit: p.limit, message_ids: p.message_ids }),
    shell: command("queue redrive", [text(p.queue)], [["--limit", p.limit], ...((p.message_ids as string[] | undefined) ?? []).map((id): Option => ["--id", id])]),
  }),
  "queue.stats": (p) => ({ python: call("queue.stats", [p.queue]), shell: command("queue stats", [text(p.queue)]) }),
  "queue.list": () => ({ python: call("queue.list", []), shell: command("queue list", []) }),
  "stream.publish": (p) => ({
    python: call("stream.publish", [p.room, p.event_type, p.data], { metadata: p.metadata }),
    shell: command("stream publish", [text(p.room), text(p.event_type), argument(p.data)], headers("--metadata", p.metadata)),
  }),
  "stream.subscribe": (p) => ({
    python: `for event in ${call("stream.subscribe", [p.room], { from_offset: p.from_offset, replay: p.replay || undefined })}: print(event)`,
    shell: command("stream tail", [text(p.room)], [["--from", p.from_offset], ["--replay", p.replay]]),
  }),
  "stream.history": (p) => ({
    python: call("stream.history", [p.room], { from_offset: p.from_offset, to_offset: p.to_offset, limit: p.limit }),
    shell: command("stream history", [text(p.room)], [["--from", p.from_offset], ["--to", p.to_offset], ["--limit", p.limit]]),
  }),
  "stream.rooms": () => ({ python: call("stream.rooms", []), shell: command("stream rooms", []) }),
  "stream.stats": (p) => ({ python: call("stream.stats", [p.room]), shell: command("stream stats", [text(p.room)]) }),
  "stream.delete": (p) => ({ python: call("stream.delete", [p.room]), shell: command("stream delete", [text(p.room)]) }),
  "stream.forget": (p) => ({ python: call("stream.forget", [p.room, p.name]), shell: command("stream forget", [text(p.room), text(p.name)]) }),
  "stream.cursors": (p) => ({ python: call("stream.cursors", [p.room]), shell: command("stream cursors", [text(p.room)]) }),
  "pubsub.publish": (p) => ({
    python: call("pubsub.publish", [p.topic, p.message], { metadata: p.metadata }),
    shell: command("pubsub publish", [text(p.topic), argument(p.message)], headers("--metadata", p.metadata)),
  }),
  "pubsub.subscribe": (p) => ({
    python: `for topic, message in ${call("pubsub.subscribe", [p.topics])}: print(topic, message)`,
    shell: command("pubsub subscribe", p.topics as string[]),
  }),
  "pubsub.topics": (p) => ({ python: call("pubsub.topics", p.pattern ? [p.pattern] : []), shell: command("pubsub topics", p.pattern ? [text(p.pattern)] : []) }),
  "pubsub.stats": () => ({ python: call("pubsub.stats", []), shell: command("pubsub stats", []) }),
  "kv.mset": (p) => {
    const pairs = p.pairs as { key: string; value: unknown; ttl?: number }[];
    const ttl = pairs[0]?.ttl;
    return {
      python: call("kv.mset", [Object.fromEntries(pairs.map((pair) => [pair.key, pair.value]))], { ttl }),
      shell: command("kv mset", pairs.map((pair) => `${pair.key}=${argument(pair.value)}`), [["--ttl", ttl]]),
    };
  },
  "kv.clear": (p) => ({ python: call("kv.clear", [p.prefix]), shell: command("kv clear", [text(p.prefix)]) }),
  "queue.extend": (p) => ({
    python: call("queue.extend", [p.queue, p.message_id, p.ack_deadline], { lease: p.lease }),
    shell: command("queue extend", [text(p.queue), text(p.message_id), text(p.ack_deadline)], [["--lease", p.lease]]),
  }),
  "queue.consume_many": (p) => ({
    python: call("queue.consume_many", [p.queues], { max: p.max, timeout: p.timeout, ack_deadline: p.ack_deadline }),
    shell: command("queue consume-many", p.queues as string[], [["--max", p.max], ["--timeout", p.timeout], ["--ack-deadline", p.ack_deadline]]),
  }),
  "stream.commit": (p) => ({ python: call("stream.commit", [p.room, p.name, p.offset]), shell: command("stream commit", [text(p.room), text(p.name), text(p.offset)]) }),
  "admin.clients": (p) => ({ python: call("clients", [], { disconnect: p.disconnect }), shell: command("clients", [], [["--disconnect", p.disconnect]]) }),
  "admin.config": () => ({ python: call("settings", []), shell: command("settings", []) }),
  "admin.shutdown": () => ({ python: call("shutdown", []), shell: command("shutdown", []) }),
  "admin.stats": () => ({ python: call("stats", []), shell: command("stats", []) }),
  "admin.health": () => ({ python: call("health", []), shell: command("health", []) }),
};

/** The lines for a command of the table; a command that has no method of its own goes through the HTTP interface. */
export function lines(name: string, payload: Payload): Lines {
  const known = TABLE[name];
  try {
    if (known) return known(payload);
  } catch {
    // What was typed isn't yet what the command takes.
  }
  const body = encode({ command: name, payload });
  const key = "-H \"X-API-Key: $SYNAP_API_KEY\"";
  return {
    python: `httpx.post("${location.origin}/api/v1/command", json=${python(new Raw(body))})`,
    shell: `curl ${location.origin}/api/v1/command ${key} -H 'Content-Type: application/json' -d ${quote(body)}`,
  };
}
