import { useEffect, useState } from "preact/hooks";
import { bytes, count, plural, span } from "../format";
import { Act } from "../parts/dialog";
import { Filter } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Facts, Page } from "../parts/page";
import { type Column, Table } from "../parts/table";
import { Same } from "../parts/code";
import { serviceNow } from "../state/live";
import { connection, type Refusal } from "../wire/connection";

export interface Client {
  id: number;
  lane: string;
  address: string;
  key: string;
  session: string;
  since: number;
  waits: string[];
  subscriptions: string[];
  unsent: number;
  format: string;
  you: boolean;
}

const LANES: Record<string, string> = { native: "native", websocket: "WebSocket", http: "HTTP", events: "server-sent events", new: "not yet said" };

const columns = (now: number): Column<Client>[] => [
  { id: "address", title: "Address", width: "minmax(11.5rem, 1.5fr)", cell: (client) => <span class="mono">{client.address}{client.you && <span class="badge">you</span>}</span>, by: (client) => client.address },
  { id: "lane", title: "Lane", width: "minmax(5.5rem, 1fr)", cell: (client) => LANES[client.lane] ?? client.lane, by: (client) => client.lane },
  { id: "key", title: "Key", width: "minmax(5rem, 1fr)", from: 720, cell: (client) => client.key || <span class="zero">none</span>, by: (client) => client.key },
  { id: "waits", title: "Waits for", width: "minmax(7rem, 2fr)", from: 560, cell: (client) => (client.waits.length ? client.waits.join(", ") : <span class="zero">nothing</span>), by: (client) => client.waits.length },
  { id: "subscriptions", title: "Subscribed to", width: "minmax(7rem, 2fr)", from: 860, cell: (client) => (client.subscriptions.length ? client.subscriptions.join(", ") : <span class="zero">nothing</span>), by: (client) => client.subscriptions.length },
  { id: "unsent", title: "Unsent", width: "6rem", numeric: true, from: 960, cell: (client) => <span class={client.unsent > 65536 ? "warntext" : client.unsent ? "" : "zero"}>{bytes(client.unsent)}</span>, by: (client) => client.unsent, help: "Bytes that wait for a reader that is slow" },
  { id: "since", title: "For", width: "6.5rem", numeric: true, cell: (client) => span(now - client.since), by: (client) => now - client.since },
];

export function Clients() {
  const [clients, setClients] = useState<Client[]>();
  const [total, setTotal] = useState(0);
  const [error, setError] = useState<Refusal>();
  const [filter, setFilter] = useState("");
  const [open, setOpen] = useState<number>();
  const [leaving, setLeaving] = useState<Client>();
  const load = () =>
    connection.call("admin.clients", { limit: 10_000 }).then(
      (answer) => {
        setClients(answer.clients as Client[]);
        setTotal(answer.total);
        setError(undefined);
      },
      (failure: Refusal) => setError(failure),
    );
  useEffect(() => {
    void load();
    const timer = setInterval(() => document.visibilityState === "visible" && void load(), 2000);
    return () => clearInterval(timer);
  }, []);
  const wanted = filter.toLowerCase();
  const now = serviceNow();
  const rows = (clients ?? []).filter((client) => [client.address, client.lane, client.key, client.session, ...client.waits, ...client.subscriptions].some((text) => text.toLowerCase().includes(wanted)));
  const one = clients?.find((client) => client.id === open);
  return (
    <Page fill title="Clients" actions={<Filter value={filter} change={setFilter} placeholder="Filter clients" />}>
      <div class={`split${one ? " open" : ""}`}>
        <div class="column">
          <Table
            label="Clients"
            rows={rows}
            columns={columns(now)}
            id={(client) => String(client.id)}
            open={(client) => setOpen(client.id === open ? undefined : client.id)}
            active={open === undefined ? undefined : String(open)}
            sort={{ column: "since", descending: false }}
            empty={error ? <Empty icon="alert" title={error.message} /> : clients ? <Empty icon="search" title="No client fits the filter" /> : null}
          />
          <p class="count" role="status">{plural(rows.length, "connection")}{total > (clients?.length ?? 0) ? `, and ${count(total - clients!.length)} more` : ""}</p>
        </div>
        {one && (
          <aside class="detail" aria-label="Client">
            <header>
              <h2 class="mono">{one.address}</h2>
              <button type="button" class="ghost" aria-label="Close" onClick={() => setOpen(undefined)}><Icon name="close" /></button>
            </header>
            <Facts
              facts={[
                ["Lane", LANES[one.lane] ?? one.lane],
                ["Format", one.format || "–"],
                ["Key", one.key || "none is asked for"],
                ["Session", one.session ? <code key="session">{one.session}</code> : "none"],
                ["Connected for", span(now - one.since)],
                ["Unsent", bytes(one.unsent)],
              ]}
            />
            <h3>Waits for</h3>
            {one.waits.length ? <ul class="plain">{one.waits.map((text) => <li key={text}>{text}</li>)}</ul> : <p class="muted">nothing</p>}
            <h3>Subscribed to</h3>
            {one.subscriptions.length ? <ul class="plain">{one.subscriptions.map((text) => <li key={text}>{text}</li>)}</ul> : <p class="muted">nothing</p>}
            <div class="buttons">
              <button type="button" class="danger-quiet" disabled={one.you} title={one.you ? "This is the connection of this page" : undefined} onClick={() => setLeaving(one)}>Disconnect</button>
            </div>
            <Same command="admin.clients" payload={{}} />
          </aside>
        )}
      </div>
      {leaving && (
        <Act
          title={`Disconnect ${leaving.address}`}
          verb="Disconnect"
          danger
          close={() => { setLeaving(undefined); void load(); }}
          deed={{ command: "admin.clients", payload: { disconnect: leaving.id } }}
          done={(answer) => (answer.disconnected ? `${leaving.address} disconnected` : `${leaving.address} had gone already`)}
        >
          <p>Closes the connection. What it waits for is withdrawn, its subscriptions end, its leases run on until their deadline. A Synap client reconnects automatically; to keep it out, revoke its key.</p>
        </Act>
      )}
    </Page>
  );
}
