import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { clock, count, perSecond, plural } from "../format";
import { Glance, Same, Value } from "../parts/code";
import { Act } from "../parts/dialog";
import { Filter } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Facts, Page, Stat } from "../parts/page";
import { type Column, Table } from "../parts/table";
import { rooms, tick } from "../state/live";
import { go, link, route } from "../state/route";
import { may } from "../state/session";
import { connection, type Refusal } from "../wire/connection";
import type { Raw } from "../wire/json";
import { PublishEvent } from "./streams";

interface Event {
  offset: number;
  event_id: string;
  event_type: string;
  data: Raw;
  metadata: Record<string, string>;
  timestamp: number;
}

interface Cursor {
  name: string;
  offset: number;
  lag: number;
}

/** Events kept in the page; older ones are asked for again when they are scrolled to. */
const KEPT = 5000;
const BEGIN = 200;

const COLUMNS: Column<Event>[] = [
  { id: "offset", title: "Offset", width: "minmax(3.5rem, 5.5rem)", numeric: true, cell: (event) => <span class="offset">{count(event.offset)}</span> },
  { id: "time", title: "Time", width: "minmax(5.5rem, auto)", numeric: true, from: 460, cell: (event) => clock(event.timestamp) },
  { id: "type", title: "Type", width: "minmax(4.5rem, 7.5rem)", cell: (event) => <span class="kind">{event.event_type}</span> },
  { id: "data", title: "Data", width: "minmax(8rem, 4fr)", cell: (event) => <Glance raw={event.data} /> },
];

/** The offset of the first event at or after a time, by bisection over the kept ones. */
async function offsetAt(room: string, time: number): Promise<number> {
  const at = async (offset: number) => (await connection.call("stream.history", { room, from_offset: offset, limit: 1 })).events[0]?.timestamp as number | undefined;
  const { oldest_offset, newest_offset } = await connection.call("stream.history", { room, limit: 1 });
  let low = oldest_offset as number;
  let high = (newest_offset as number) + 1;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (((await at(middle)) ?? Infinity) >= time) high = middle;
    else low = middle + 1;
  }
  return low;
}

export function Room({ name }: { name: string }) {
  tick.value;
  const row = rooms.get(name);
  const [, redraw] = useState(0);
  const events = useRef<Event[]>([]);
  const [from, setFrom] = useState<number | undefined>(() => (route.value.query.has("offset") ? Number(route.value.query.get("offset")) : undefined));
  const [paused, setPaused] = useState(false);
  const [filter, setFilter] = useState("");
  const [open, setOpen] = useState<number>();
  const [error, setError] = useState<Refusal>();
  const [jumping, setJumping] = useState("");
  const [doing, setDoing] = useState<"" | "publish" | "delete">("");
  const [cursors, setCursors] = useState<Cursor[]>([]);
  const [jump, setJump] = useState<{ to: number; stamp: number }>();
  const dirty = useRef(false);
  const waiting = useRef<Event[]>([]);
  const isPaused = useRef(false);
  isPaused.current = paused;

  useEffect(() => {
    events.current = [];
    waiting.current = [];
    setError(undefined);
    let next: number | undefined = from;
    const stop = connection.subscribe({
      command: "stream.subscribe",
      exact: true,
      // Resubscribes on each connection at the next offset: no gap, no repeat.
      payload: () => ({ room: name, from_offset: next ?? -BEGIN }),
      item: (event: Event) => {
        if (next !== undefined && event.offset < next) return;
        next = event.offset + 1;
        (isPaused.current ? waiting : events).current.push(event);
        dirty.current = true;
      },
      ended: (refusal) => setError(refusal),
    });
    // A frame is drawn for many events, not for each.
    const timer = setInterval(() => {
      if (!dirty.current) return;
      dirty.current = false;
      for (const list of [events.current, waiting.current]) if (list.length > KEPT) list.splice(0, list.length - KEPT);
      redraw((stamp) => stamp + 1);
    }, 100);
    return () => {
      stop();
      clearInterval(timer);
    };
  }, [name, from]);
  useEffect(() => {
    let over = false;
    const look = () => connection.call("stream.cursors", { room: name }).then((answer) => !over && setCursors(answer.cursors as Cursor[]), () => {});
    void look();
    const timer = setInterval(look, 3000);
    return () => {
      over = true;
      clearInterval(timer);
    };
  }, [name]);

  const wanted = filter.toLowerCase();
  const stamp = events.current.length ? events.current[events.current.length - 1]!.offset + events.current[0]!.offset / 1e9 : -1;
  const shown = useMemo(() => (wanted ? events.current.filter((event) => event.event_type.toLowerCase().includes(wanted) || event.data.text.toLowerCase().includes(wanted) || Object.entries(event.metadata).some((pair) => pair.join("=").toLowerCase().includes(wanted))) : events.current), [wanted, stamp, events.current.length]);
  const one = events.current.find((event) => event.offset === open);
  const toggle = () => {
    if (paused) {
      events.current = [...events.current, ...waiting.current].slice(-KEPT);
      waiting.current = [];
    }
    setPaused(!paused);
  };
  const jumpTo = async (event: SubmitEvent) => {
    event.preventDefault();
    const text = jumping.trim();
    try {
      let to: number;
      if (/^-?\d+$/.test(text)) to = Number(text);
      else {
        const today = new Date();
        const parts = /^(\d{1,2}):(\d{2})(?::(\d{2}))?$/.exec(text);
        const time = parts ? new Date(today.getFullYear(), today.getMonth(), today.getDate(), Number(parts[1]), Number(parts[2]), Number(parts[3] ?? 0)) : new Date(text);
        if (Number.isNaN(time.getTime())) return setError({ message: `“${text}” is neither an offset nor a time such as 14:30 or 2026-11-27 14:30` } as Refusal);
        to = await offsetAt(name, Math.floor(time.getTime() / 1000));
      }
      setPaused(false);
      setFrom(to);
      setJump({ to: 0, stamp: Date.now() });
    } catch (failure) {
      setError(failure as Refusal);
    }
  };
  const manage = may("stream", "manage", name);
  return (
    <Page
      fill
      title={name}
      crumb={{ href: link("streams"), text: "Streams" }}
      actions={
        <>
          {may("stream", "write", name) && <button type="button" class="primary" data-new onClick={() => setDoing("publish")}><Icon name="plus" /> Publish</button>}
          {manage ? <button type="button" class="danger-quiet" onClick={() => setDoing("delete")}><Icon name="trash" /> Delete</button> : <span class="muted">read-only: this key may not manage {name}</span>}
        </>
      }
    >
      {row && (
        <section class="stats slim" aria-label="Figures">
          <Stat label="Events kept" value={count(row.events)} sub={row.published_total > row.events ? `from offset ${count(row.published_total - row.events)}` : "all there were"} />
          <Stat label="Next offset" value={count(row.published_total)} sub={`${perSecond(row.in)}/s`} />
          <Stat label="Subscribers" value={count(row.subscribers)} sub="this page is one" />
        </section>
      )}
      {cursors.length > 0 && (
        <section class="cursors" aria-label="Durable subscriptions">
          {cursors.map((cursor) => (
            <span class="cursorchip" key={cursor.name}>
              <b>{cursor.name}</b> at {count(cursor.offset)} <span class={cursor.lag > 0 ? "warntext" : "muted"}>{cursor.lag > 0 ? `${plural(cursor.lag, "event")} behind` : "up to date"}</span>
            </span>
          ))}
        </section>
      )}
      <div class="bar">
        <button type="button" onClick={toggle} aria-pressed={paused}><Icon name={paused ? "play" : "pause"} /> {paused ? `Resume${waiting.current.length ? ` (${count(waiting.current.length)} new)` : ""}` : "Pause"}</button>
        <form class="jump" onSubmit={jumpTo}>
          <label class="filter">
            <Icon name="clock" />
            <input aria-label="Jump to an offset or a time" placeholder="Jump: offset or 14:30" value={jumping} onInput={(event) => setJumping(event.currentTarget.value)} />
          </label>
          <button type="submit" disabled={!jumping.trim()}>Jump</button>
        </form>
        {from !== undefined && <button type="button" class="ghost" onClick={() => setFrom(undefined)}>Back to the newest</button>}
        <Filter value={filter} change={setFilter} placeholder="Filter events" />
      </div>
      {error && <p class="error" role="alert">{error.message}</p>}
      <div class={`split${one ? " open" : ""}`}>
        <div class="column">
          <Table
            label={`Events of ${name}`}
            rows={shown}
            columns={COLUMNS}
            id={(event) => String(event.offset)}
            open={(event) => setOpen(event.offset === open ? undefined : event.offset)}
            active={open === undefined ? undefined : String(open)}
            follow={!paused && from === undefined}
            jump={jump}
            empty={filter ? <Empty icon="search" title={`No event of those here has “${filter}” in it`} /> : <Empty icon="streams" title="No events yet"><p>The next one appears here by itself.</p></Empty>}
          />
          <p class="count" role="status">{filter ? `${count(shown.length)} of ` : ""}{plural(events.current.length, "event")}{paused ? ", paused" : ", live"}</p>
        </div>
        {one && (
          <aside class="detail" aria-label="Event">
            <header>
              <h2>Event {count(one.offset)}</h2>
              <button type="button" class="ghost" aria-label="Close" onClick={() => setOpen(undefined)}><Icon name="close" /></button>
            </header>
            <Value raw={one.data} label="Data" />
            <Facts facts={[["Type", one.event_type], ["Time", clock(one.timestamp)], ["Id", <code key="id">{one.event_id}</code>]]} />
            {Object.keys(one.metadata).length > 0 && <><h3>Metadata</h3><Facts facts={Object.entries(one.metadata)} /></>}
            <Same command="stream.history" payload={{ room: name, from_offset: one.offset, limit: 1 }} />
          </aside>
        )}
      </div>
      {doing === "publish" && <PublishEvent room={name} close={() => setDoing("")} />}
      {doing === "delete" && (
        <Act title={`Delete ${name}`} verb="Delete" danger typed={name} close={() => setDoing("")} after={() => go("streams")} deed={{ command: "stream.delete", payload: { room: name } }} done={() => `${name} deleted`}>
          <p>Deletes the room and the {plural(row?.events ?? 0, "event")} it keeps, and ends its subscriptions. Offsets begin at 0 again.</p>
        </Act>
      )}
    </Page>
  );
}
