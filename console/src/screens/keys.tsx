import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { bytes, count, plural, span } from "../format";
import { Same, Value } from "../parts/code";
import { Act } from "../parts/dialog";
import { Filter, rawOf, Text, useDraft, ValueField } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Facts, Page } from "../parts/page";
import { say } from "../parts/toast";
import { type Column, Table } from "../parts/table";
import { go, link } from "../state/route";
import { may } from "../state/session";
import { connection, type Refusal } from "../wire/connection";
import { pretty, type Raw } from "../wire/json";

const MOST = 200_000;
const PAGE = 5000;
const PARTER = /[:/.]/;

interface Branch {
  /** The whole prefix, with the delimiter, or the whole key. */
  path: string;
  label: string;
  depth: number;
  /** Keys below; 0 for a key. */
  keys: number;
  open: boolean;
}

/** First place in sorted `keys` at which a key is not below `text`. */
function lower(keys: string[], text: string): number {
  let low = 0;
  let high = keys.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (keys[middle]! < text) low = middle + 1;
    else high = middle;
  }
  return low;
}

const after = (prefix: string) => prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);

const natural = new Intl.Collator("en", { numeric: true });
/** Rows of one level that are put in the order people count in; more stay as the keys are sorted. */
const COUNTED = 2000;

/** The rows of the tree, as far as it is open. No tree is built: the sorted keys are one. */
function branches(keys: string[], open: Set<string>): Branch[] {
  const walk = (from: number, to: number, prefix: string, depth: number): Branch[] => {
    const level: Branch[] = [];
    const below = new Map<Branch, Branch[]>();
    for (let at = from; at < to; ) {
      const key = keys[at]!;
      const rest = key.slice(prefix.length);
      const cut = rest.search(PARTER);
      const path = cut < 0 ? key : prefix + rest.slice(0, cut + 1);
      const end = cut < 0 || path === key ? at + 1 : Math.min(to, lower(keys, after(path)));
      if (end - at <= 1) {
        level.push({ path: key, label: rest, depth, keys: 0, open: false });
        at++;
      } else {
        const opened = open.has(path);
        const branch = { path, label: path.slice(prefix.length), depth, keys: end - at, open: opened };
        level.push(branch);
        if (opened) below.set(branch, walk(at, end, path, depth + 1));
        at = end;
      }
    }
    if (level.length <= COUNTED) level.sort((a, b) => natural.compare(a.label, b.label));
    return below.size ? level.flatMap((branch) => [branch, ...(below.get(branch) ?? [])]) : level;
  };
  return walk(0, keys.length, "", 0);
}

/** All keys with a prefix, page by page. */
function useKeys(prefix: string) {
  const [keys, setKeys] = useState<string[]>([]);
  const [state, setState] = useState<{ loading: boolean; more: boolean; error?: string }>({ loading: true, more: false });
  const [round, setRound] = useState(0);
  useEffect(() => {
    let over = false;
    const walk = async () => {
      let cursor: string | undefined;
      const all: string[] = [];
      setState({ loading: true, more: false });
      try {
        do {
          const page = await connection.call("kv.scan", { prefix: prefix || undefined, cursor, count: PAGE });
          if (over) return;
          all.push(...(page.keys as string[]));
          cursor = page.has_more ? page.cursor : undefined;
          if (!round || all.length % (4 * PAGE) === 0 || !cursor) setKeys([...all].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0)));
        } while (cursor && all.length < MOST);
        setState({ loading: false, more: cursor !== undefined });
      } catch (error) {
        if (!over) setState({ loading: false, more: false, error: (error as Refusal).message });
      }
    };
    const timer = setTimeout(walk, prefix ? 200 : 0);
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [prefix, round]);
  return { keys, ...state, again: () => setRound(round + 1) };
}

interface Stored {
  key: string;
  found: boolean;
  value: Raw;
  ttl: number | null;
  at: number;
}

export function Keys({ name }: { name?: string }) {
  const [filter, setFilter] = useState("");
  const [open, setOpen] = useState(new Set<string>());
  const [doing, setDoing] = useState<"" | "set" | "clear">("");
  const { keys, loading, more, error, again } = useKeys(filter);
  const rows = useMemo(() => branches(keys, open), [keys, open]);
  const columns: Column<Branch>[] = [
    {
      id: "key",
      title: "Key",
      width: "minmax(10rem, 1fr)",
      cell: (row) => (
        <span class="branch" style={{ paddingLeft: `${row.depth * 1.1}rem` }}>
          {row.keys ? <Icon name={row.open ? "down" : "right"} /> : <span class="leaf" aria-hidden="true" />}
          <span class={row.keys ? "prefix" : "name"}>{row.label}</span>
        </span>
      ),
    },
    { id: "keys", title: "Keys", width: "5.5rem", numeric: true, cell: (row) => (row.keys ? count(row.keys) : "") },
  ];
  const choose = (row: Branch) => {
    if (!row.keys) return go("keys", row.path);
    const next = new Set(open);
    if (!next.delete(row.path)) next.add(row.path);
    setOpen(next);
  };
  return (
    <Page
      fill
      title="Keys"
      actions={
        <>
          <Filter value={filter} change={setFilter} placeholder="Prefix, such as user:" />
          {may("kv", "write") && <button type="button" class="primary" data-new onClick={() => setDoing("set")}><Icon name="plus" /> Set a key</button>}
        </>
      }
    >
      <div class={`split${name !== undefined ? " open" : ""}`}>
        <div class="column">
          <Table
            label="Keys by prefix"
            rows={rows}
            columns={columns}
            id={(row) => (row.keys ? `+${row.path}` : row.path)}
            open={choose}
            active={name}
            empty={error ? <Empty icon="alert" title={error} /> : loading ? null : filter ? <Empty icon="search" title={`No key begins with “${filter}”`} /> : <Empty icon="keys" title="No keys yet"><p>In Python: <code>client.kv.set("user:1", {"{"}"name": "Alice"{"}"}, ttl=3600)</code></p></Empty>}
          />
          <p class="count" role="status">
            {loading ? `${plural(keys.length, "key")} so far…` : plural(keys.length, "key")}
            {more ? `, and more: narrow it down by a prefix` : ""}
            <button type="button" class="ghost tiny" aria-label="Look again" title="Look again" onClick={again}><Icon name="redo" /></button>
          </p>
        </div>
        {name !== undefined && <Key key={name} name={name} gone={again} />}
      </div>
      {doing === "set" && <SetKey close={() => { setDoing(""); again(); }} />}
    </Page>
  );
}

function Key({ name, gone }: { name: string; gone: () => void }) {
  const [stored, setStored] = useState<Stored>();
  const [error, setError] = useState("");
  const [doing, setDoing] = useState<"" | "edit" | "ttl" | "persist" | "delete">("");
  const [, beat] = useState(0);
  const newest = useRef("");
  const load = async () => {
    try {
      const answer = await connection.call("kv.get", { key: name }, { exact: true });
      setStored({ ...answer, key: name, at: Date.now() });
      newest.current = answer.value?.text ?? "";
      setError("");
    } catch (failure) {
      setError((failure as Refusal).message);
    }
  };
  useEffect(() => {
    void load();
    const look = setInterval(() => document.visibilityState === "visible" && void load(), 2000);
    const second = setInterval(() => beat((stamp) => stamp + 1), 1000);
    return () => {
      clearInterval(look);
      clearInterval(second);
    };
  }, [name]);
  const close = () => {
    setDoing("");
    void load();
  };
  const left = stored?.ttl == null ? null : Math.max(0, stored.ttl - Math.floor((Date.now() - stored.at) / 1000));
  const write = may("kv", "write", name);
  return (
    <aside class="detail" aria-label="Key">
      <header>
        <h2 class="mono">{name}</h2>
        <a class="button ghost" role="button" aria-label="Close" href={link("keys")}><Icon name="close" /></a>
      </header>
      {error && <p class="error" role="alert">{error}</p>}
      {stored && !stored.found && <Empty icon="keys" title="There is no such key (any more)"><p>It was deleted, or its time was over.</p></Empty>}
      {stored?.found && (
        <>
          <Value raw={stored.value} />
          <Facts
            facts={[
              ["Kind", kindOf(stored.value)],
              ["Size", `${bytes(new TextEncoder().encode(stored.value.text).length)} as JSON`],
              ["Expires", left === null ? "never" : <span key="ttl" class={left < 60 ? "warntext" : ""} role="timer">in {span(left)}</span>],
            ]}
          />
          {write ? (
            <div class="buttons">
              <button type="button" onClick={() => setDoing("edit")}><Icon name="edit" /> Edit</button>
              <button type="button" onClick={() => setDoing("ttl")}><Icon name="clock" /> Expire…</button>
              {left !== null && <button type="button" onClick={() => setDoing("persist")}>Keep for ever</button>}
              <button type="button" class="danger-quiet" onClick={() => setDoing("delete")}><Icon name="trash" /> Delete</button>
            </div>
          ) : (
            <p class="muted">read-only: this key of yours may not write here</p>
          )}
          <Same command="kv.get" payload={{ key: name }} />
        </>
      )}
      {doing === "edit" && stored?.found && <Edit stored={stored} close={close} />}
      {doing === "ttl" && <Expire name={name} left={left} close={close} />}
      {doing === "persist" && <Act title={`Keep ${name}`} verb="Keep for ever" close={close} deed={{ command: "kv.persist", payload: { key: name } }} done={() => `${name} no longer expires`}><p>The key no longer expires.</p></Act>}
      {doing === "delete" && (
        <Act title={`Delete ${name}`} verb="Delete" danger close={() => setDoing("")} after={() => { gone(); go("keys"); }} typed={name.length <= 40 ? name : "delete"} deed={{ command: "kv.del", payload: { keys: [name] } }} done={(answer) => (answer.deleted ? `${name} deleted` : `${name} was gone already`)}>
          <p>Deletes the key and its value. It can't be brought back.</p>
        </Act>
      )}
    </aside>
  );
}

function kindOf(raw: Raw): string {
  const text = raw.text;
  if (text.startsWith("{")) return plural(Object.keys(raw.value as object).length, "field");
  if (text.startsWith("[")) return plural((raw.value as unknown[]).length, "item");
  if (text.startsWith('"')) return `text, ${plural((raw.value as string).length, "character")}`;
  if (text === "true" || text === "false") return "true or false";
  if (text === "null") return "null";
  return /[.eE]/.test(text) ? "floating-point number" : "whole number";
}

function Edit({ stored, close }: { stored: Stored; close: () => void }) {
  const isText = stored.value.text.startsWith('"');
  const [before] = useState(stored.value);
  const [draft, setDraft] = useDraft(isText ? (stored.value.value as string) : pretty(stored.value.text).map((line) => line.map((token) => token.text).join("")).join("\n"), isText ? "text" : "json");
  const value = rawOf(draft);
  return (
    <Act
      title={`Edit ${stored.key}`}
      verb="Save"
      close={close}
      deed={value ? { command: "kv.set", payload: { key: stored.key, value, keep_ttl: stored.ttl === null ? undefined : true, if_value: before } } : undefined}
      done={(answer) => (answer.success ? `${stored.key} saved` : `${stored.key} was not saved`)}
      after={(answer) => !answer.success && say("The value was changed meanwhile, so nothing was saved. Review it and edit again.", "bad")}
    >
      <ValueField label="Value" draft={draft} change={setDraft} rows={12} />
      <p class="muted">{stored.ttl === null ? "" : "Its ttl stays. "}Saved only if the value has not changed since.</p>
    </Act>
  );
}

function Expire({ name, left, close }: { name: string; left: number | null; close: () => void }) {
  const [ttl, setTtl] = useState(left === null ? "3600" : String(left));
  const seconds = Number(ttl);
  return (
    <Act title={`Let ${name} expire`} verb="Set" close={close} deed={seconds >= 1 ? { command: "kv.expire", payload: { key: name, ttl: Math.floor(seconds) } } : undefined} done={() => `${name} expires in ${span(Math.floor(seconds))}`}>
      <Text label="Seconds from now" type="number" min={1} value={ttl} change={setTtl} focus />
    </Act>
  );
}

function SetKey({ close }: { close: () => void }) {
  const [key, setKey] = useState("");
  const [ttl, setTtl] = useState("");
  const [fresh, setFresh] = useState(true);
  const [draft, setDraft] = useDraft('{"name": "Alice"}');
  const value = rawOf(draft);
  return (
    <Act
      title="Set a key"
      verb="Set"
      close={close}
      deed={key && value ? { command: "kv.set", payload: { key, value, ttl: ttl ? Number(ttl) : undefined, nx: fresh || undefined } } : undefined}
      done={(answer) => (answer.success ? `${key} set` : `${key} is there already; nothing was changed`)}
      after={(answer) => answer.success && go("keys", key)}
    >
      <Text label="Key" value={key} change={setKey} required focus placeholder="user:1" />
      <ValueField label="Value" draft={draft} change={setDraft} />
      <div class="pairrow">
        <Text label="Expires after" type="number" min={1} value={ttl} change={setTtl} placeholder="never" hint="seconds" />
        <label class="check"><input type="checkbox" checked={fresh} onChange={(event) => setFresh(event.currentTarget.checked)} /> only if it doesn't exist</label>
      </div>
    </Act>
  );
}
