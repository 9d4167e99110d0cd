/** The service's figures, pushed twice a second while the page is visible; tables and charts read them here. */
import { signal } from "@preact/signals";
import { connection, type Refusal } from "../wire/connection";
import { admin, session } from "./session";

export interface QueueFigures {
  depth: number;
  pending: number;
  delayed: number;
  consumers: number;
  max_depth: number;
  published_total: number;
  consumed_total: number;
  acked_total: number;
  nacked_total: number;
  dead_lettered_total: number;
  /** Unix seconds at which the oldest ready message was published. */
  oldest: number | null;
}

export interface QueueRow extends QueueFigures {
  name: string;
  dead: number;
  in: number;
  out: number;
}

export interface RoomRow {
  name: string;
  events: number;
  subscribers: number;
  published_total: number;
  /** Events that durable subscriptions have not done, by name; absent without an admin key. */
  lag?: Record<string, number>;
  in: number;
}

export interface Totals {
  time: number;
  operations: Record<string, number>;
  errors: Record<string, number>;
  connections: number;
  max_connections: number;
  memory: number;
  memory_limit: number | null;
  keys: number;
  queues: number;
  rooms: number;
  subscriptions: number;
  waiting: number;
  answer_ms: { p50: number; p99: number; max: number } | null;
  health: { status: string; reason?: string; durable: boolean; engine?: string; uptime_secs: number; version: string };
  log?: Record<string, number | null>;
  disk?: { free: number; size: number } | null;
  cluster?: unknown;
}

/** Grows by one with each push: what reads the tables depends on it. */
export const tick = signal(0);
export const totals = signal<Totals | undefined>(undefined);
export const queues = new Map<string, QueueRow>();
export const rooms = new Map<string, RoomRow>();
/** Why there are no figures, where there are none. */
export const watchError = signal<Refusal | undefined>(undefined);
/** The service's clock less this machine's, in seconds. */
let skew = 0;
export const serviceNow = (): number => Date.now() / 1000 + skew;

/** The last five minutes, a point a second, oldest first: [time, …series]. */
export const SPAN = 300;
export const FACILITIES = ["kv", "queue", "stream", "pubsub"] as const;
export interface History {
  time: number[];
  operations: number[][];
  p50: number[];
  p99: number[];
}
export const history: History = { time: [], operations: FACILITIES.map(() => []), p50: [], p99: [] };
export const rates = signal<Record<string, number>>({});
export const errorRate = signal(0);

export const isDead = (name: string): boolean => name.endsWith(".dlq") && queues.has(name.slice(0, -4));

interface Push {
  totals: Totals;
  queues: Record<string, QueueFigures>;
  queues_gone: string[];
  rooms: Record<string, Omit<RoomRow, "name" | "in">>;
  rooms_gone: string[];
  whole: boolean;
}

function rate(now: number, before: number | undefined, seconds: number): number {
  return before === undefined || seconds <= 0 ? 0 : Math.max(0, (now - before) / seconds);
}

/** Rates are over at least this many seconds: pushes come more often, and a rate over less would flicker. */
const RATE_SPAN = 0.9;
let measured: Totals | undefined;
/** What rows had when rates were last computed: [published, acked]. */
const queuesThen = new Map<string, [number, number]>();
const roomsThen = new Map<string, number>();

function take(push: Push): void {
  const now = push.totals;
  skew = now.time - Date.now() / 1000;
  if (push.whole) {
    measured = undefined;
    for (const name of queues.keys()) if (!(name in push.queues)) queues.delete(name);
    for (const name of rooms.keys()) if (!(name in push.rooms)) rooms.delete(name);
  }
  for (const name of push.queues_gone) queues.delete(name);
  for (const name of push.rooms_gone) rooms.delete(name);
  for (const name in push.queues) {
    const figures = push.queues[name]!;
    const old = push.whole ? undefined : queues.get(name);
    queues.set(name, {
      name,
      ...figures,
      dead: 0,
      // A cluster doesn't report all figures.
      max_depth: figures.max_depth ?? 0,
      oldest: figures.oldest ?? null,
      in: old?.in ?? 0,
      out: old?.out ?? 0,
    });
  }
  for (const name in push.rooms) rooms.set(name, { name, ...push.rooms[name]!, in: (push.whole ? undefined : rooms.get(name)?.in) ?? 0 });
  for (const row of queues.values()) row.dead = queues.get(`${row.name}.dlq`)?.depth ?? 0;
  if (!measured || now.time - measured.time >= RATE_SPAN) measure(now);
  totals.value = now;
  tick.value++;
}

function measure(now: Totals): void {
  const before = measured;
  const seconds = before ? now.time - before.time : 0;
  for (const row of queues.values()) {
    const [published, acked] = queuesThen.get(row.name) ?? [0, 0];
    row.in = rate(row.published_total, published, seconds);
    row.out = rate(row.acked_total, acked, seconds);
  }
  for (const row of rooms.values()) row.in = rate(row.published_total, roomsThen.get(row.name) ?? 0, seconds);
  queuesThen.clear();
  roomsThen.clear();
  for (const row of queues.values()) queuesThen.set(row.name, [row.published_total, row.acked_total]);
  for (const row of rooms.values()) roomsThen.set(row.name, row.published_total);
  measured = now;
  if (!before || !now.operations) return;
  const found: Record<string, number> = {};
  for (const group in now.operations) found[group] = rate(now.operations[group]!, before.operations[group] ?? 0, seconds);
  rates.value = found;
  const sum = (all: Record<string, number>) => Object.values(all).reduce((total, one) => total + one, 0);
  errorRate.value = rate(sum(now.errors), sum(before.errors), seconds);
  history.time.push(now.time);
  FACILITIES.forEach((facility, place) => history.operations[place]!.push(found[facility] ?? 0));
  history.p50.push(now.answer_ms?.p50 ?? 0);
  history.p99.push(now.answer_ms?.p99 ?? 0);
  for (const series of [history.time, ...history.operations, history.p50, history.p99])
    if (series.length > SPAN) series.splice(0, series.length - SPAN);
}

let stop: (() => void) | undefined;
function look(): void {
  const wanted = admin.value && document.visibilityState === "visible";
  if (wanted && !stop) {
    watchError.value = undefined;
    stop = connection.subscribe({
      command: "admin.watch",
      payload: () => ({}),
      item: (item) => take(item.message as Push),
      ended: (error) => {
        watchError.value = error;
        stop = undefined;
      },
    });
  } else if (!wanted && stop) {
    stop();
    stop = undefined;
    // Hidden tabs are not subscribed, so that the service computes nothing for them.
    if (connection.status.value === "live") connection.call("admin.watch", { enabled: false }).catch(() => {});
  }
}
document.addEventListener("visibilitychange", look);
session.subscribe(() => look());

// ---- without an admin key: what can be had by asking, for what is on the screen

let polling = 0;
async function poll(): Promise<void> {
  if (admin.value || connection.status.value !== "live" || document.visibilityState !== "visible") return;
  const [queueNames, roomNames] = await Promise.all([
    connection.call("queue.list").then((answer) => answer.queues as string[], () => []),
    connection.call("stream.rooms").then((answer) => answer.rooms as string[], () => []),
  ]);
  const ask = [
    ...queueNames.slice(0, 1000).map((queue) => ({ command: "queue.stats", payload: { queue } })),
    ...roomNames.slice(0, 1000).map((room) => ({ command: "stream.stats", payload: { room } })),
  ];
  const found = ask.length ? await connection.batch(ask) : [];
  const time = Date.now() / 1000;
  const seen = new Set<string>();
  found.forEach((outcome, place) => {
    if (outcome.status !== "success") return;
    const { command, payload } = ask[place]!;
    const figures = outcome.payload;
    const seconds = polledAt ? time - polledAt : 0;
    if (command === "queue.stats") {
      const name = (payload as { queue: string }).queue;
      const old = queues.get(name);
      seen.add(`q${name}`);
      queues.set(name, {
        name,
        max_depth: 0,
        dead: 0,
        ...figures,
        oldest: figures.oldest_message_age_secs == null ? null : time - figures.oldest_message_age_secs,
        in: rate(figures.published_total, old?.published_total, seconds),
        out: rate(figures.acked_total, old?.acked_total, seconds),
      });
    } else {
      const name = (payload as { room: string }).room;
      seen.add(`r${name}`);
      rooms.set(name, { name, ...figures, in: rate(figures.published_total, rooms.get(name)?.published_total, seconds) });
    }
  });
  for (const name of queues.keys()) if (!seen.has(`q${name}`)) queues.delete(name);
  for (const name of rooms.keys()) if (!seen.has(`r${name}`)) rooms.delete(name);
  for (const row of queues.values()) row.dead = queues.get(`${row.name}.dlq`)?.depth ?? 0;
  polledAt = time;
  tick.value++;
}
let polledAt = 0;
connection.status.subscribe((status) => {
  clearInterval(polling);
  if (status !== "live") return;
  polling = window.setInterval(() => void poll().catch(() => {}), 2000);
  void poll().catch(() => {});
});
