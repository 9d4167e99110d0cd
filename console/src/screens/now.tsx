import type { ComponentChildren } from "preact";
import { age, bytes, count, milliseconds, perSecond, plural, span } from "../format";
import { Chart, Spark } from "../parts/chart";
import { Icon } from "../parts/icons";
import { Empty, Meter, Page, Stat } from "../parts/page";
import { type Column, Table } from "../parts/table";
import { errorRate, FACILITIES, history, isDead, queues, type QueueRow, rates, serviceNow, tick, totals, watchError } from "../state/live";
import { go, link } from "../state/route";
import { session } from "../state/session";

export interface Problem {
  tone: "bad" | "warn";
  what: ComponentChildren;
  /** What to do about it. */
  remedy: ComponentChildren;
  href?: string;
  key: string;
}

const OLD = 60;

function Names({ rows }: { rows: QueueRow[] }) {
  return (
    <>
      {rows.slice(0, 3).map((row, place) => <span key={row.name}>{place ? ", " : ""}<b>{row.name}</b></span>)}
      {rows.length > 3 ? " and others" : ""}
    </>
  );
}

/** What is wrong now, worst first, each with what to do. */
export function problems(): Problem[] {
  const found: Problem[] = [];
  const now = totals.value;
  if (!now) return found;
  const { health } = now;
  if (health.status === "degraded")
    found.push({ key: "degraded", tone: "bad", what: `Writes are refused: ${health.reason ?? "the log can't write"}`, remedy: health.engine === "cluster" ? "The service's log names the nodes. It looks at them every two seconds and goes on by itself once they serve." : "Reads still work. Free space on the disk or repair it; the service retries automatically and accepts writes once the log works.", href: link("server") });
  if (health.status === "draining") found.push({ key: "draining", tone: "warn", what: "The service is stopping.", remedy: "Requests in flight are answered, new ones are refused. Clients reconnect automatically when it is started again." });
  if (now.memory_limit && now.memory > 0.85 * now.memory_limit)
    found.push({ key: "memory", tone: now.memory > 0.95 * now.memory_limit ? "bad" : "warn", what: `The data takes ${bytes(now.memory)} of ${bytes(now.memory_limit)} memory.`, remedy: "Past the limit writes are refused (MEMORY_LIMIT). Consume or purge queues, let keys expire, or start the service with a larger --memory-limit.", href: link("server") });
  if (now.disk && now.disk.free < Math.max(0.05 * now.disk.size, 256 * 1024 * 1024))
    found.push({ key: "disk", tone: "bad", what: `${bytes(now.disk.free)} are free on the disk of the data.`, remedy: "Free space soon: while the disk is full the service refuses writes.", href: link("server") });
  if (now.connections > 0.9 * now.max_connections)
    found.push({ key: "connections", tone: "warn", what: `${count(now.connections)} of ${count(now.max_connections)} connections are open.`, remedy: "Further ones are refused. See which clients are connected, or raise --max-connections and the system's limit of open files.", href: link("clients") });
  if (now.answer_ms && now.answer_ms.p99 > 250)
    found.push({ key: "slow", tone: "warn", what: `An answer takes ${milliseconds(now.answer_ms.p99)} (p99).`, remedy: health.durable ? "Either the processor is busy or the disk is slow: compare the commit time on the Server screen." : "The processor is busy: see which commands are most frequent.", href: link("server") });
  const time = serviceNow();
  const idle: QueueRow[] = [];
  const dead: QueueRow[] = [];
  for (const row of queues.values()) {
    const held = row.depth + row.pending + row.delayed;
    if (row.max_depth && held >= 0.9 * row.max_depth)
      found.push({ key: `full ${row.name}`, tone: "bad", what: <>The queue <b>{row.name}</b> is {held >= row.max_depth ? "full" : "nearly full"}: {count(held)} of {count(row.max_depth)}.</>, remedy: "Publishing to a full queue is refused (QUEUE_FULL). Start more workers, or raise max_depth in its settings.", href: link("queues", row.name) });
    if (isDead(row.name)) continue;
    if (row.depth > 0 && row.oldest !== null && time - row.oldest > OLD && row.consumers + row.pending === 0 && row.out === 0) idle.push(row);
    if (row.dead > 0) dead.push(row);
  }
  if (idle.length) {
    idle.sort((a, b) => a.oldest! - b.oldest!);
    const worst = idle[0]!;
    found.push({
      key: "idle",
      tone: "warn",
      what: idle.length === 1 ? <>No consumer takes from <b>{worst.name}</b>: {plural(worst.depth, "message")} ready, the oldest for {span(time - worst.oldest!)}.</> : <>No consumer takes from {count(idle.length)} queues: <Names rows={idle} />; the oldest message waits for {span(time - worst.oldest!)}.</>,
      remedy: idle.length === 1 ? "Start a worker for it, or delete it if it isn't used any more." : "Start workers for them, or delete those that aren't used any more.",
      href: idle.length === 1 ? link("queues", worst.name) : link("queues"),
    });
  }
  if (dead.length) {
    dead.sort((a, b) => b.dead - a.dead);
    const letters = dead.reduce((sum, row) => sum + row.dead, 0);
    found.push({
      key: "dead",
      tone: "warn",
      what: dead.length === 1 ? <><b>{dead[0]!.name}</b> has {plural(letters, "dead letter")}.</> : <>{count(dead.length)} queues have {plural(letters, "dead letter")}: <Names rows={dead} />.</>,
      remedy: "Find out why they failed, fix that, then redrive them.",
      href: dead.length === 1 ? link("queues", dead[0]!.name, { tab: "dead" }) : link("queues"),
    });
  }
  return found.sort((a, b) => Number(b.tone === "bad") - Number(a.tone === "bad"));
}

export const queueColumns = (time: number): Column<QueueRow>[] => [
  { id: "name", title: "Queue", width: "minmax(9rem, 2fr)", cell: (row) => <span class="name">{row.name}</span>, by: (row) => row.name },
  { id: "ready", title: "Ready", width: "minmax(4rem, 1fr)", numeric: true, cell: (row) => count(row.depth), by: (row) => row.depth, help: "Messages that wait for a consumer" },
  { id: "leased", title: "Leased", width: "minmax(4rem, 1fr)", numeric: true, from: 560, cell: (row) => <Quiet value={row.pending} />, by: (row) => row.pending, help: "Messages a consumer works on" },
  { id: "delayed", title: "Delayed", width: "minmax(4rem, 1fr)", numeric: true, from: 760, cell: (row) => <Quiet value={row.delayed} />, by: (row) => row.delayed, help: "Messages held back until later" },
  { id: "dead", title: "Dead", width: "minmax(4rem, 1fr)", numeric: true, from: 420, cell: (row) => (row.dead ? <span class="warntext">{count(row.dead)}</span> : <Quiet value={0} />), by: (row) => row.dead, help: "Dead letters: given up after max_retries" },
  { id: "in", title: "In /s", width: "minmax(4rem, 1fr)", numeric: true, from: 680, cell: (row) => <Quiet value={row.in} format={perSecond} />, by: (row) => row.in, help: "Published a second" },
  { id: "out", title: "Acked /s", width: "minmax(4rem, 1fr)", numeric: true, from: 680, cell: (row) => <Quiet value={row.out} format={perSecond} />, by: (row) => row.out, help: "Acknowledged a second" },
  { id: "consumers", title: "Waiting", width: "minmax(4.5rem, 1fr)", numeric: true, from: 860, cell: (row) => <Quiet value={row.consumers} />, by: (row) => row.consumers, help: "Consumers that wait for a message" },
  { id: "oldest", title: "Oldest", width: "minmax(4.5rem, 1fr)", numeric: true, cell: (row) => (row.oldest === null ? <Quiet value={0} format={() => "–"} /> : <span class={time - row.oldest > OLD ? "warntext" : ""}>{age(time - row.oldest)}</span>), by: (row) => (row.oldest === null ? null : time - row.oldest), help: "Age of the oldest message that is ready" },
];

function Quiet({ value, format = count }: { value: number; format?: (value: number) => string }) {
  return <span class={value ? "" : "zero"}>{format(value)}</span>;
}

const COLORS = ["--kv", "--queue", "--stream", "--pubsub"];
const NAMES: Record<string, string> = { kv: "Keys", queue: "Queues", stream: "Streams", pubsub: "Pub/sub" };

export function Now() {
  tick.value;
  const now = totals.value;
  if (watchError.value) return <Page title="Now"><Empty icon="alert" title={watchError.value.message} /></Page>;
  if (!now) return <Page title="Now"><Empty icon="now" title="Waiting for the first figures…" /></Page>;
  const wrong = problems();
  const time = serviceNow();
  const busy = FACILITIES.reduce((sum, facility) => sum + (rates.value[facility] ?? 0), 0);
  const sums = history.time.map((_, place) => history.operations.reduce((sum, series) => sum + series[place]!, 0));
  const listed = [...queues.values()].filter((row) => !isDead(row.name));
  return (
    <Page title="Now" actions={<span class="muted">up {span(now.health.uptime_secs)}</span>}>
      {wrong.length > 0 && (
        <section class="problems" aria-label="Problems">
          {wrong.slice(0, 4).map((one) => (
            <a key={one.key} class={`problem ${one.tone}`} href={one.href}>
              <Icon name="alert" />
              <span><span class="what">{one.what}</span> <span class="remedy">{one.remedy}</span></span>
            </a>
          ))}
          {wrong.length > 4 && <p class="muted">and {wrong.length - 4} more of the kind</p>}
        </section>
      )}
      <section class="stats" aria-label="Figures">
        <Stat label="Operations" value={perSecond(busy)} unit="/s" sub={errorRate.value >= 0.05 ? <span class="warntext">{perSecond(errorRate.value)} errors/s</span> : "no errors"}>
          <Spark values={sums} color="--accent" />
        </Stat>
        <Stat label="Answer, p99" value={now.answer_ms ? milliseconds(now.answer_ms.p99) : "–"} sub={now.answer_ms ? `median ${milliseconds(now.answer_ms.p50)}` : "measuring"}>
          <Spark values={history.p99} color="--accent" />
        </Stat>
        <Stat label="Connections" value={count(now.connections)} sub={`${count(now.waiting)} waiting · ${plural(now.subscriptions, "subscription")}`} />
        <Stat label="Memory" value={bytes(now.memory)} sub={now.memory_limit ? `of ${bytes(now.memory_limit)}` : "of data, no limit set"}>
          {now.memory_limit ? <Meter part={now.memory / now.memory_limit} label="Memory used" /> : null}
        </Stat>
        <Stat label="Disk" value={now.log ? bytes((now.log.database_bytes ?? 0) + (now.log.write_ahead_bytes ?? 0)) : "none"} sub={now.log ? (now.disk ? `${bytes(now.disk.free)} free` : "durable") : "in memory only"}>
          {now.disk ? <Meter part={1 - now.disk.free / now.disk.size} label="Disk used" /> : null}
        </Stat>
      </section>
      <div class="charts">
        <section class="panel" aria-label="Operations a second">
          <header>
            <h2>Operations a second</h2>
            <ul class="legend">
              {FACILITIES.map((facility, place) => (
                <li key={facility}>
                  <span class="swatch" style={{ background: `var(${COLORS[place]})` }} />
                  {NAMES[facility]}
                  <b>{perSecond(rates.value[facility] ?? 0)}</b>
                </li>
              ))}
            </ul>
          </header>
          <Chart label="Operations a second" stacked stamp={tick.value} format={perSecond} data={() => [history.time, ...history.operations]} series={FACILITIES.map((facility, place) => ({ name: NAMES[facility]!, color: COLORS[place]! }))} />
        </section>
        <section class="panel" aria-label="Time of an answer">
          <header>
            <h2>Time of an answer</h2>
            <ul class="legend">
              <li><span class="swatch" style={{ background: "var(--accent)" }} />p99<b>{milliseconds(now.answer_ms?.p99)}</b></li>
              <li><span class="swatch" style={{ background: "var(--kv)" }} />median<b>{milliseconds(now.answer_ms?.p50)}</b></li>
            </ul>
          </header>
          <Chart label="Time of an answer" stamp={tick.value} format={(value) => (value === 0 ? "0" : `${value >= 10 ? Math.round(value) : value.toFixed(1)} ms`)} data={() => [history.time, history.p99, history.p50]} series={[{ name: "p99", color: "--accent" }, { name: "median", color: "--kv" }]} />
        </section>
      </div>
      <section class="panel" aria-label="Queues by age">
        <header>
          <h2>Queues, oldest message first</h2>
          <a href={link("queues")}>All {count(listed.length)} queues</a>
        </header>
        <div class="short-table" style={{ height: `${Math.min(10, Math.max(3, listed.length)) * 36 + 38}px` }}>
          <Table
            label="Queues, oldest message first"
            rows={listed}
            columns={queueColumns(time)}
            id={(row) => row.name}
            open={(row) => go("queues", row.name)}
            sort={{ column: "oldest", descending: true }}
            empty={<Empty icon="queues" title="No queues yet"><p>Publishing to a queue makes it. <a href={link("queues")}>Publish a first message</a>, or in Python: <code>client.queue.publish("tasks", {"{"}"type": "hello"{"}"})</code></p></Empty>}
          />
        </div>
      </section>
      {session.value && !session.value.keys && <p class="muted fine">No key is required: anyone who can reach this port may do everything.</p>}
    </Page>
  );
}
