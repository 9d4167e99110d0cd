import { useEffect, useRef, useState } from "preact/hooks";
import { clock, count, perSecond, plural, span } from "../format";
import { Same, Glance, Value } from "../parts/code";
import { Spark } from "../parts/chart";
import { Act } from "../parts/dialog";
import { Tabs, Text } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Facts, Page, Stat } from "../parts/page";
import { type Column, Table } from "../parts/table";
import { queues, type QueueRow, serviceNow, tick } from "../state/live";
import { go, link, route } from "../state/route";
import { may } from "../state/session";
import { connection, type Refusal } from "../wire/connection";
import type { Raw } from "../wire/json";
import { PublishToQueue } from "./queues";

interface Message {
  message_id: string;
  message: Raw;
  priority: number;
  retry_count: number;
  headers: Record<string, string>;
  published: number;
  due: number | null;
}

type State = "ready" | "leased" | "delayed" | "dead";
const PAGE = 200;
const EVERY = 1500;

/** The messages of a queue in one state: pages of them, looked at again while nothing is chosen. */
function useMessages(queue: string, state: State) {
  const [messages, setMessages] = useState<Message[]>([]);
  const [more, setMore] = useState(false);
  const [error, setError] = useState<Refusal>();
  const [loaded, setLoaded] = useState(false);
  const pages = useRef(1);
  const where = state === "dead" ? { queue: `${queue}.dlq`, state: "ready" } : { queue, state };
  const load = async () => {
    try {
      const found: Message[] = [];
      let after: string | undefined;
      let further = false;
      for (let page = 0; page < pages.current; page++) {
        const answer = await connection.call("queue.peek", { ...where, after, limit: PAGE }, { exact: true });
        found.push(...(answer.messages as Message[]));
        further = answer.has_more;
        after = found[found.length - 1]?.message_id;
        if (!further) break;
      }
      setMessages(found);
      setMore(further);
      setError(undefined);
    } catch (failure) {
      if ((failure as Refusal).code === "QUEUE_NOT_FOUND" && state === "dead") setMessages([]);
      else setError(failure as Refusal);
    }
    setLoaded(true);
  };
  useEffect(() => {
    let over = false;
    pages.current = 1;
    setLoaded(false);
    setMessages([]);
    let timer = 0;
    const round = async () => {
      if (document.visibilityState === "visible") await load();
      if (!over) timer = window.setTimeout(round, EVERY);
    };
    void round();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [queue, state]);
  return { messages, more, error, loaded, load, next: () => { pages.current++; void load(); } };
}

/** What the queue did since the page was opened, a point a second, for the lines in the tiles. */
function usePast(name: string, row: QueueRow | undefined) {
  const past = useRef({ name, tick: 0, ready: [] as number[], in: [] as number[], out: [] as number[] });
  const now = past.current;
  if (row && now.tick !== tick.value) {
    now.tick = tick.value;
    for (const [series, value] of [[now.ready, row.depth], [now.in, row.in], [now.out, row.out]] as const) {
      series.push(value);
      if (series.length > 60) series.shift();
    }
  }
  return now;
}

const LETTER = "x-dead-letter-";
const REASONS: Record<string, string> = { max_retries: "failed more often than max_retries allows", rejected: "a consumer gave it up" };

/** The headers of a dead letter that say why it became one. */
function tries(message: Message): [string, string][] {
  const header = (name: string) => message.headers[LETTER + name];
  const facts: [string, string | undefined][] = [
    ["Reason", REASONS[header("reason") ?? ""] ?? header("reason")],
    ["From", header("queue")],
    ["Tries", header("tries")],
    ["Died", header("time") && clock(Number(header("time")))],
    ["Id it had", header("message-id")],
  ];
  return facts.filter((fact): fact is [string, string] => fact[1] !== undefined);
}

const others = (message: Message): [string, string][] => Object.entries(message.headers).filter(([name]) => !name.startsWith(LETTER));

export function Queue({ name }: { name: string }) {
  tick.value;
  const row = queues.get(name);
  const query = route.value.query;
  const [tab, setTab] = useState<State>((query.get("tab") as State) || "ready");
  const [open, setOpen] = useState<string>();
  const [chosen, setChosen] = useState(new Set<string>());
  const [doing, setDoing] = useState<"" | "publish" | "purge" | "delete" | "redrive" | "settings" | "requeue" | "reject">("");
  const { messages, more, error, loaded, load, next } = useMessages(name, tab);
  const manage = may("queue", "manage", name);
  const time = serviceNow();
  const past = usePast(name, row);
  const one = messages.find((message) => message.message_id === open);
  const selected = messages.filter((message) => chosen.has(message.message_id)).map((message) => message.message_id);
  const change = (to: string) => {
    setTab(to as State);
    setChosen(new Set());
    setOpen(undefined);
  };
  const columns: Column<Message>[] = [
    { id: "message", title: "Message", width: "minmax(10rem, 4fr)", cell: (message) => <Glance raw={message.message} /> },
    { id: "priority", title: "Priority", width: "5rem", numeric: true, from: 680, cell: (message) => message.priority },
    { id: "tries", title: "Retries", width: "5rem", numeric: true, from: 620, cell: (message) => <span class={message.retry_count ? "warntext" : "zero"}>{message.retry_count}</span> },
    { id: "age", title: tab === "dead" ? "Died" : "Published", width: "7rem", numeric: true, cell: (message) => `${span(time - message.published)} ago`.replace("0 ms ago", "now") },
    ...(tab === "leased" || tab === "delayed"
      ? [{ id: "due", title: tab === "leased" ? "Lease ends" : "Ready in", width: "7rem", numeric: true, cell: (message: Message) => (message.due === null ? "–" : message.due > time ? span(message.due - time) : "now") } satisfies Column<Message>]
      : []),
  ];
  const nothing: Record<State, [string, string]> = {
    ready: ["Nothing is ready", "Messages that wait for a consumer are listed here, next out first."],
    leased: ["Nothing is leased", "Messages that a consumer works on are listed here until it acknowledges them, or its lease ends."],
    delayed: ["Nothing is delayed", "Messages that were published with a delay, or wait before their next try, are listed here."],
    dead: ["No dead letters", "Messages that failed more often than max_retries come here, with the reason."],
  };
  const close = () => {
    setDoing("");
    void load();
  };
  const total = row ? row.depth + row.pending + row.delayed : 0;
  return (
    <Page
      fill
      title={name}
      crumb={{ href: link("queues"), text: "Queues" }}
      actions={
        <>
          {may("queue", "write", name) && <button type="button" class="primary" data-new onClick={() => setDoing("publish")}><Icon name="plus" /> Publish</button>}
          {manage && <button type="button" onClick={() => setDoing("settings")}>Settings</button>}
          {manage && <button type="button" disabled={!total} onClick={() => setDoing("purge")}>Purge</button>}
          {manage && <button type="button" class="danger-quiet" onClick={() => setDoing("delete")}><Icon name="trash" /> Delete</button>}
          {!manage && <span class="muted">read-only: this key may not manage {name}</span>}
        </>
      }
    >
      {row && (
        <section class="stats slim" aria-label="Figures">
          <Stat label="Ready" value={count(row.depth)} sub={row.oldest === null ? "nothing waits" : `oldest ${span(time - row.oldest)}`}><Spark values={past.ready} color="--accent" /></Stat>
          <Stat label="Leased" value={count(row.pending)} sub={`${plural(row.consumers, "consumer")} waiting`} />
          <Stat label="Published" value={perSecond(row.in)} unit="/s" sub={`${count(row.published_total)} in all`}><Spark values={past.in} color="--accent" /></Stat>
          <Stat label="Acknowledged" value={perSecond(row.out)} unit="/s" sub={`${count(row.acked_total)} in all`}><Spark values={past.out} color="--accent" /></Stat>
          <Stat label="Failed" value={count(row.nacked_total)} sub={`${count(row.dead_lettered_total)} dead-lettered`} />
        </section>
      )}
      <div class="bar">
        <Tabs label="State of messages" value={tab} change={change} choices={[["ready", "Ready", row?.depth], ["leased", "Leased", row?.pending], ["delayed", "Delayed", row?.delayed], ...(name.endsWith(".dlq") ? [] : [["dead", "Dead", row?.dead] as [string, string, number?]])]} />
        {manage && tab === "dead" && messages.length > 0 && <button type="button" onClick={() => setDoing("redrive")}><Icon name="redo" /> {selected.length ? `Redrive ${selected.length} selected` : "Redrive all"}</button>}
        {manage && tab === "leased" && one && <button type="button" onClick={() => setDoing("requeue")}><Icon name="redo" /> Requeue</button>}
        {manage && tab === "leased" && one && <button type="button" onClick={() => setDoing("reject")}>Give up</button>}
      </div>
      <div class={`split${one ? " open" : ""}`}>
        <div class="column">
          <Table
            label={`Messages of ${name}, ${tab}`}
            rows={messages}
            columns={columns}
            id={(message) => message.message_id}
            open={(message) => setOpen(message.message_id === open ? undefined : message.message_id)}
            active={open}
            selection={tab === "dead" && manage ? { chosen, change: setChosen } : undefined}
            empty={error ? <Empty icon="alert" title={error.message} /> : loaded ? <Empty icon="queues" title={nothing[tab][0]}><p>{nothing[tab][1]}</p></Empty> : null}
          />
          <p class="count" role="status">
            {plural(messages.length, "message")}{more ? " shown" : ""}
            {more && <button type="button" class="ghost" onClick={next}>Show more</button>}
          </p>
        </div>
        {one && (
          <aside class="detail" aria-label="Message">
            <header>
              <h2>Message</h2>
              <button type="button" class="ghost" aria-label="Close" onClick={() => setOpen(undefined)}><Icon name="close" /></button>
            </header>
            <Value raw={one.message} label="Message" />
            <Facts
              facts={[
                ["Id", <code key="id">{one.message_id}</code>],
                ["Priority", one.priority],
                ...(tab === "dead"
                  ? []
                  : ([
                      ["Published", `${clock(one.published)} (${span(time - one.published)} ago)`],
                      ["Retries", one.retry_count === 0 ? "none, this is the first try" : count(one.retry_count)],
                    ] as [string, string][])),
                ...(one.due ? [[tab === "leased" ? "Lease ends" : "Ready at", `${clock(one.due)}${one.due > time ? ` (in ${span(one.due - time)})` : ""}`] as [string, string]] : []),
              ]}
            />
            {tries(one).length > 0 && <><h3>Why it is here</h3><Facts facts={tries(one)} /></>}
            {others(one).length > 0 && <><h3>Headers</h3><Facts facts={others(one)} /></>}
            <Same command="queue.peek" payload={{ queue: tab === "dead" ? `${name}.dlq` : name, state: tab === "dead" || tab === "ready" ? undefined : tab }} />
          </aside>
        )}
      </div>
      {doing === "publish" && <PublishToQueue queue={name} close={close} />}
      {doing === "purge" && (
        <Act title={`Purge ${name}`} verb="Purge" danger typed={name} close={close} deed={{ command: "queue.purge", payload: { queue: name } }} done={(answer) => `${plural(answer.purged, "message")} of ${name} purged`}>
          <p>Drops all {plural(total, "message")} that {name} holds now, leased and delayed ones too. They can't be brought back.</p>
        </Act>
      )}
      {doing === "delete" && (
        <Act title={`Delete ${name}`} verb="Delete" danger typed={name} close={close} after={() => go("queues")} deed={{ command: "queue.delete", payload: { queue: name } }} done={() => `${name} deleted`}>
          <p>Deletes the queue, its settings and all {plural(total, "message")} in it. Waiting consumers get an error; publishing creates it again.</p>
        </Act>
      )}
      {doing === "redrive" && <Redrive queue={name} ids={selected} total={row?.dead ?? messages.length} close={() => { setChosen(new Set()); close(); }} />}
      {doing === "requeue" && one && (
        <Act title="Requeue the message" verb="Requeue" close={close} deed={{ command: "queue.nack", payload: { queue: name, message_id: one.message_id, requeue: true, lease: 0 } }} done={(answer) => `The message was ${String(answer.action).replace("_", "-")}`}>
          <p>Takes the lease from its consumer: the message is requeued at its place, as after a nack, and one retry is counted.</p>
        </Act>
      )}
      {doing === "reject" && one && (
        <Act title="Give the message up" verb="Give up" danger close={close} deed={{ command: "queue.nack", payload: { queue: name, message_id: one.message_id, requeue: false, lease: 0 } }} done={(answer) => `The message was ${String(answer.action).replace("_", "-")}`}>
          <p>Takes the lease from its consumer, and makes the message a dead letter; a queue without dead letters drops it.</p>
        </Act>
      )}
      {doing === "settings" && <Settings queue={name} close={close} />}
    </Page>
  );
}

function Redrive({ queue, ids, total, close }: { queue: string; ids: string[]; total: number; close: () => void }) {
  const [limit, setLimit] = useState("");
  const payload = ids.length ? { queue, message_ids: ids } : { queue, limit: limit ? Number(limit) : undefined };
  return (
    <Act title={`Redrive dead letters of ${queue}`} verb="Redrive" close={close} deed={{ command: "queue.redrive", payload }} done={(answer) => `${plural(answer.redriven, "message")} put back in ${queue}`}>
      <p>{ids.length ? `Puts the ${plural(ids.length, "selected dead letter")} back in ${queue}` : `Puts dead letters back in ${queue}, next out first`}, as new messages whose retries count from 0. Fix the cause first.</p>
      {!ids.length && <Text label="At most" type="number" min={1} value={limit} change={setLimit} placeholder={`all ${count(total)}`} />}
    </Act>
  );
}

function Settings({ queue, close }: { queue: string; close: () => void }) {
  const [fields, setFields] = useState<Record<string, string>>({});
  const set = (name: string) => (value: string) => setFields({ ...fields, [name]: value });
  const config: Record<string, unknown> = {};
  for (const name of ["max_retries", "ack_deadline", "max_depth", "retry_delay", "retry_backoff", "retry_max_delay"]) if (fields[name]) config[name] = Number(fields[name]);
  if (fields.dead_letter) config.dead_letter = fields.dead_letter === "yes";
  const depth = queues.get(queue)?.max_depth;
  return (
    <Act title={`Settings of ${queue}`} verb="Change" close={close} deed={Object.keys(config).length ? { command: "queue.create", payload: { queue, config } } : undefined} done={() => `${queue} has the new settings`}>
      <p>Only what is filled in changes.</p>
      <div class="pairrow">
        <Text label="Most retries" type="number" min={0} value={fields.max_retries ?? ""} change={set("max_retries")} hint="tries after the first" />
        <Text label="Lease" type="number" min={0} value={fields.ack_deadline ?? ""} change={set("ack_deadline")} hint="seconds to acknowledge in" />
      </div>
      <div class="pairrow">
        <Text label="Most messages" type="number" min={1} value={fields.max_depth ?? ""} change={set("max_depth")} placeholder={depth ? String(depth) : ""} hint="a full queue refuses" />
        <label class="field">
          <span>Dead letters</span>
          <select value={fields.dead_letter ?? ""} onChange={(event) => set("dead_letter")(event.currentTarget.value)}>
            <option value="">as it is</option>
            <option value="yes">go to {queue}.dlq</option>
            <option value="no">none: try for ever</option>
          </select>
        </label>
      </div>
      <div class="pairrow">
        <Text label="Pause before a retry" type="number" min={0} value={fields.retry_delay ?? ""} change={set("retry_delay")} hint="seconds" />
        <Text label="Growing by" type="number" min={1} value={fields.retry_backoff ?? ""} change={set("retry_backoff")} hint="times the last" />
        <Text label="At most" type="number" min={0} value={fields.retry_max_delay ?? ""} change={set("retry_max_delay")} hint="seconds" />
      </div>
    </Act>
  );
}
