import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { milliseconds } from "../format";
import { Same, Value } from "../parts/code";
import { Filter } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Page } from "../parts/page";
import { connection, type Refusal } from "../wire/connection";
import { encode, fault, Raw } from "../wire/json";

interface Schema {
  $ref?: string;
  type?: string | string[];
  description?: string;
  default?: unknown;
  anyOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  minimum?: number;
  maximum?: number;
  minLength?: number;
  maxLength?: number;
  enum?: unknown[];
  const?: unknown;
  title?: string;
}

interface Api {
  components: { schemas: Record<string, Schema> };
}

export interface CommandDoc {
  name: string;
  doc: string;
  payload: Schema;
  fields: { name: string; kind: string; doc: string; required: boolean; fallback: unknown }[];
}

const PUSHES = new Set(["stream.subscribe", "stream.unsubscribe", "pubsub.subscribe", "pubsub.unsubscribe", "admin.watch"]);
const DESTROYS = new Set(["queue.delete", "queue.purge", "stream.delete", "kv.clear", "kv.del", "admin.shutdown"]);

/** The table marks code with backticks. */
const plain = (text: string): string => text.replace(/`/g, "");

function resolve(api: Api, schema: Schema | undefined): Schema {
  const name = schema?.$ref?.split("/").pop();
  return (name ? api.components.schemas[name] : schema) ?? {};
}

function kind(api: Api, given: Schema): string {
  const schema = resolve(api, given);
  if (schema.anyOf) return schema.anyOf.map((one) => kind(api, one)).filter((one) => one !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.type === "array") return `list of ${kind(api, schema.items ?? {})}`;
  const names: Record<string, string> = { integer: "whole number", number: "number", string: "text", boolean: "true or false", object: "object" };
  return schema.type ? [schema.type].flat().map((one) => names[one] ?? one).join(" or ") : "any value";
}

function words(api: Api, given: Schema): string {
  const schema = resolve(api, given);
  return schema.description ?? schema.anyOf?.map((one) => words(api, one)).find(Boolean) ?? "";
}

let cached: Promise<CommandDoc[]> | undefined;
function commands(): Promise<CommandDoc[]> {
  cached ??= fetch("openapi.json", { credentials: "same-origin" })
    .then((response) => response.json())
    .then((api: Api) =>
      ((api.components.schemas.Request as unknown as { oneOf: Schema[] }).oneOf ?? []).map((request) => {
        const payload = resolve(api, request.properties?.payload);
        const required = new Set(payload.required);
        return {
          name: request.title ?? "",
          doc: request.description ?? "",
          payload,
          fields: Object.entries(payload.properties ?? {}).map(([name, schema]) => ({ name, kind: kind(api, schema), doc: words(api, schema), required: required.has(name), fallback: schema.default })),
        };
      }),
    );
  cached.catch(() => (cached = undefined));
  return cached;
}

const EXAMPLES: Record<string, unknown> = { key: "user:1", keys: ["user:1"], value: { name: "Alice" }, queue: "tasks", queues: ["tasks"], message: { type: "hello" }, room: "chat-1", event_type: "message", data: { text: "hi" }, topic: "notifications.email", topics: ["notifications.#"], pairs: [{ key: "user:1", value: 1 }], prefix: "user:", message_id: "", ttl: 3600, ack_deadline: 60, name: "reader-1", offset: 0, max: 10, subscription_id: 1 };

function skeleton(command: CommandDoc): string {
  const needed = command.fields.filter((field) => field.required);
  return JSON.stringify(Object.fromEntries(needed.map((field) => [field.name, EXAMPLES[field.name] ?? null])), null, 2);
}

interface Outcome {
  ok: boolean;
  raw: Raw;
  took: number;
}

export function TryIt() {
  const [all, setAll] = useState<CommandDoc[]>([]);
  const [name, setName] = useState("");
  const [text, setText] = useState("{}");
  const [outcome, setOutcome] = useState<Outcome>();
  const [busy, setBusy] = useState(false);
  const [sure, setSure] = useState("");
  const [at, setAt] = useState(-1);
  const [typing, setTyping] = useState(false);
  const [filter, setFilter] = useState("");
  const area = useRef<HTMLTextAreaElement>(null);
  const box = useRef<HTMLInputElement>(null);
  useEffect(() => void commands().then(setAll, () => {}), []);
  const command = all.find((one) => one.name === name.trim());
  const fitting = useMemo(() => all.filter((one) => one.name.includes(name.trim()) || one.doc.toLowerCase().includes(name.trim().toLowerCase())).slice(0, 12), [all, name]);
  const wrong = fault(text || "{}");
  const unknown = !wrong && command ? Object.keys(JSON.parse(text || "{}")).filter((field) => !command.fields.some((one) => one.name === field)) : [];
  const missing = !wrong && command ? command.fields.filter((field) => field.required && !(field.name in JSON.parse(text || "{}"))) : [];
  const destroys = command && DESTROYS.has(command.name);
  const choose = (one: CommandDoc) => {
    setName(one.name);
    setText(skeleton(one));
    setOutcome(undefined);
    setTyping(false);
    setAt(-1);
    setSure("");
    area.current?.focus();
  };
  const run = async () => {
    if (!command || wrong || busy) return;
    setBusy(true);
    const since = performance.now();
    try {
      const answer = await connection.call(command.name, new Raw(text || "{}") as never, { exact: true });
      setOutcome({ ok: true, raw: new Raw(encode(answer ?? null)), took: performance.now() - since });
    } catch (failure) {
      const { code, message, details } = failure as Refusal;
      setOutcome({ ok: false, raw: new Raw(JSON.stringify({ code, message, details })), took: performance.now() - since });
    }
    setSure("");
    setBusy(false);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      setTyping(true);
      setAt((at + (event.key === "ArrowDown" ? 1 : fitting.length - 1) + (at < 0 && event.key === "ArrowUp" ? 1 : 0)) % Math.max(1, fitting.length));
    } else if ((event.key === "Enter" || event.key === "Tab") && typing && (fitting[at] ?? (event.key === "Enter" ? fitting[0] : undefined))) {
      event.preventDefault();
      choose((fitting[at] ?? fitting[0])!);
    } else if (event.key === "Escape") setTyping(false);
  };
  const groups = useMemo(() => {
    const wanted = filter.toLowerCase();
    const found = new Map<string, CommandDoc[]>();
    for (const one of all) {
      if (wanted && !`${one.name} ${one.doc} ${one.fields.map((field) => field.name).join(" ")}`.toLowerCase().includes(wanted)) continue;
      const group = one.name.split(".")[0]!;
      found.set(group, [...(found.get(group) ?? []), one]);
    }
    return found;
  }, [all, filter]);
  return (
    <Page title="Try it">
      <section class="panel trybox" aria-label="Command">
        <div class="field combo">
          <label for="command">Command</label>
          <input
            id="command"
            ref={box}
            role="combobox"
            aria-expanded={typing && fitting.length > 0}
            aria-controls="commands"
            aria-autocomplete="list"
            aria-activedescendant={typing && at >= 0 ? `command-${at}` : undefined}
            class="mono"
            placeholder="kv.set, queue.publish, …"
            value={name}
            autocomplete="off"
            spellcheck={false}
            onInput={(event) => { setName(event.currentTarget.value); setTyping(true); setAt(-1); }}
            onFocus={() => setTyping(!command)}
            onBlur={() => setTimeout(() => setTyping(false), 150)}
            onKeyDown={onKeyDown}
          />
          <ul id="commands" role="listbox" aria-label="Commands" hidden={!typing || !fitting.length}>
            {fitting.map((one, place) => (
              <li key={one.name} id={`command-${place}`} role="option" aria-selected={place === at} onMouseDown={(event) => { event.preventDefault(); choose(one); }}>
                <code>{one.name}</code> <span>{plain(one.doc)}</span>
              </li>
            ))}
          </ul>
        </div>
        <div class="field">
          <label for="payload">Payload</label>
          <textarea id="payload" ref={area} class="mono" rows={Math.min(14, Math.max(4, text.split("\n").length))} value={text} spellcheck={false} aria-invalid={wrong ? true : undefined} onInput={(event) => setText(event.currentTarget.value)} onKeyDown={(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && !destroys && void run()} />
          <small class={wrong || unknown.length ? "wrong" : ""}>
            {wrong ? `Not JSON: ${wrong}` : unknown.length ? `${command!.name} doesn't know ${unknown.map((field) => `“${field}”`).join(", ")}` : missing.length ? `still needed: ${missing.map((field) => field.name).join(", ")}` : command ? `${plain(command.doc)} Ctrl+Enter runs it.` : "Choose a command; what it needs is filled in."}
          </small>
        </div>
        {destroys && (
          <label class="field">
            <span>This destroys. Type <code>{command.name}</code> to confirm</span>
            <input value={sure} autocomplete="off" spellcheck={false} onInput={(event) => setSure(event.currentTarget.value)} />
          </label>
        )}
        <div class="buttons">
          <button type="button" class={destroys ? "danger" : "primary"} disabled={!command || !!wrong || busy || PUSHES.has(command.name) || (destroys && sure !== command.name)} onClick={() => void run()}><Icon name="play" /> Run</button>
          {command && PUSHES.has(command.name) && <span class="muted">Its items are pushed: use the Streams and Pub/sub screens.</span>}
        </div>
        {command && !wrong && <Same command={command.name} payload={rawMembers(text)} />}
        {outcome && (
          <div class={`outcome ${outcome.ok ? "good" : "bad"}`} role="status">
            <p>{outcome.ok ? "Answer" : "Refused"} <span class="muted">after {milliseconds(outcome.took)}</span></p>
            <Value raw={outcome.raw} label="Answer" />
          </div>
        )}
      </section>
      <section class="panel api" aria-label="All commands">
        <header>
          <h2>All commands</h2>
          <span class="muted"><a href="openapi.json" target="_blank" rel="noreferrer">openapi.json</a></span>
          <Filter value={filter} change={setFilter} placeholder="Find a command or a field" />
        </header>
        {[...groups].map(([group, members]) => (
          <div key={group}>
            <h3>{group}</h3>
            {members.map((one) => (
              <details key={one.name}>
                <summary><code>{one.name}</code> <span>{plain(one.doc)}</span></summary>
                {one.fields.length > 0 ? (
                  <table>
                    <thead><tr><th scope="col">Field</th><th scope="col">Kind</th><th scope="col">Default</th><th scope="col">Rule</th></tr></thead>
                    <tbody>
                      {one.fields.map((field) => (
                        <tr key={field.name}>
                          <th scope="row"><code>{field.name}</code></th>
                          <td>{field.kind}</td>
                          <td>{field.required ? "needed" : field.fallback === null || field.fallback === undefined ? "–" : <code>{JSON.stringify(field.fallback)}</code>}</td>
                          <td>{field.doc}</td>
                        </tr>
                      ))}
                    </tbody>
                  </table>
                ) : (
                  <p class="muted">It takes no fields.</p>
                )}
                <button type="button" class="ghost" onClick={() => { choose(one); box.current?.scrollIntoView({ block: "center" }); }}><Icon name="play" /> Try {one.name}</button>
              </details>
            ))}
          </div>
        ))}
        {all.length > 0 && groups.size === 0 && <Empty icon="search" title={`Nothing has “${filter}” in it`} />}
      </section>
    </Page>
  );
}

/** The payload's members with values as they were typed. */
function rawMembers(text: string): Record<string, unknown> {
  const parsed = JSON.parse(text || "{}") as Record<string, unknown>;
  return parsed !== null && typeof parsed === "object" && !Array.isArray(parsed) ? parsed : {};
}
