import { useEffect, useState } from "preact/hooks";
import { bytes, clock, count, milliseconds, span } from "../format";
import { backupLine } from "../lines";
import { Copy, Same } from "../parts/code";
import { Act } from "../parts/dialog";
import { Icon } from "../parts/icons";
import { Empty, Facts, Page } from "../parts/page";
import { say } from "../parts/toast";
import { tick, totals } from "../state/live";
import { session } from "../state/session";
import { connection, type Refusal } from "../wire/connection";

type Config = Record<string, unknown>;

const SIZES = new Set(["memory", "lag_bytes", "memory_limit", "max_body", "stream_buffer", "pubsub_buffer", "snapshot_size"]);
const SPANS = new Set(["room_age", "handshake_timeout", "idle_timeout", "drain_timeout", "console_session"]);

function shown(name: string, value: unknown): string {
  if (value === null || value === undefined) return "not set";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return SIZES.has(name) ? bytes(value) : SPANS.has(name) ? span(value) : name === "port" ? String(value) : count(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

export function Server() {
  tick.value;
  const [config, setConfig] = useState<Config>();
  const [error, setError] = useState("");
  const [stopping, setStopping] = useState(false);
  const [copied, setCopied] = useState<number>();
  const now = totals.value;
  useEffect(() => void connection.call("admin.config").then(setConfig, (failure: Refusal) => setError(failure.message)), []);
  const log = now?.log;
  const backup = async () => {
    setCopied(0);
    try {
      const headers: Record<string, string> = session.value?.csrf ? { "X-CSRF-Token": session.value.csrf } : {};
      const response = await fetch("api/v1/admin/backup", { credentials: "same-origin", headers });
      if (!response.ok) throw new Error((await response.json()).error.message);
      const pieces: Uint8Array<ArrayBuffer>[] = [];
      let size = 0;
      for (const reader = response.body!.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        pieces.push(value as Uint8Array<ArrayBuffer>);
        setCopied((size += value.length));
      }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(pieces, { type: "application/octet-stream" }));
      link.download = /filename="?([^";]+)/.exec(response.headers.get("content-disposition") ?? "")?.[1] ?? "synap-backup";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      say(`Backup of ${bytes(size)} made`);
    } catch (failure) {
      say(`No backup: ${(failure as Error).message}`, "bad");
    }
    setCopied(undefined);
  };
  return (
    <Page title="Server" actions={<button type="button" class="danger-quiet" onClick={() => setStopping(true)}><Icon name="exit" /> Stop the service</button>}>
      {error && <Empty icon="alert" title={error} />}
      <div class="cards">
        <section class="panel" aria-label="Service">
          <header><h2>Service</h2></header>
          <Facts
            facts={[
              ["Version", session.value?.version ?? "–"],
              ["State", now ? <span key="s" class={now.health.status === "ok" ? "goodtext" : "badtext"}>{now.health.status}{now.health.reason ? `: ${now.health.reason}` : ""}</span> : "–"],
              ["Up for", span(now?.health.uptime_secs)],
              ["Connections", now ? `${count(now.connections)} of ${count(now.max_connections)}` : "–"],
              ["Memory of data", now ? `${bytes(now.memory)}${now.memory_limit ? ` of ${bytes(now.memory_limit)}` : ", no limit"}` : "–"],
              ["Errors answered", now ? count(Object.values(now.errors).reduce((sum, one) => sum + one, 0)) : "–"],
            ]}
          />
          {now && Object.keys(now.errors).length > 0 && <Facts facts={Object.entries(now.errors).sort((a, b) => b[1] - a[1]).slice(0, 8).map(([code, number]) => [code, count(number)])} />}
        </section>
        <section class="panel" aria-label="Durability">
          <header><h2>Durability</h2></header>
          {log ? (
            <>
              <Facts
                facts={[
                  ["On disk when", config?.fsync === "always" ? "before the answer (always)" : config?.fsync === "everysec" ? "within a second (everysec)" : shown("fsync", config?.fsync)],
                  ["Directory", <code key="d">{shown("data", config?.data)}</code>],
                  ["Commits", count(log.commits_total)],
                  ["A commit takes", log.commits_total ? `${milliseconds((1000 * (log.commit_seconds_total ?? 0)) / log.commits_total)} on average` : "–"],
                  ["Waits for the disk", bytes(log.backlog_bytes)],
                  ["Database", bytes(log.database_bytes)],
                  ["Write-ahead log", bytes(log.write_ahead_bytes)],
                  ["Free on the disk", now?.disk ? `${bytes(now.disk.free)} of ${bytes(now.disk.size)}` : "–"],
                ]}
              />
            </>
          ) : (
            <Empty icon="server" title="Nothing is kept"><p>This service runs with <code>--memory</code>: what it holds is gone when it stops. Start it with <code>--data DIR</code> to keep it.</p></Empty>
          )}
        </section>
        {log && (
          <section class="panel" aria-label="Snapshots and backup">
            <header><h2>Snapshots and backup</h2></header>
            <Facts
              facts={[
                ["Snapshots taken", count(log.snapshots_total)],
                ["Size of the last", log.snapshot_bytes ? bytes(log.snapshot_bytes) : "none yet"],
                ...(log.snapshot_time ? [["Time of the last", clock(log.snapshot_time)] as [string, string]] : []),
                ["Next at a log of", shown("snapshot_size", config?.snapshot_size)],
              ]}
            />
            <p class="muted">A backup is a consistent copy of one moment, made while the service runs.</p>
            <div class="buttons"><button type="button" disabled={copied !== undefined} onClick={() => void backup()}><Icon name="save" /> {copied === undefined ? "Download a backup" : `${bytes(copied)} so far…`}</button></div>
            <BackupLines />
          </section>
        )}
        {now?.cluster !== undefined && now.cluster !== null && <Cluster cluster={now.cluster as ClusterFigures} />}
        <section class="panel" aria-label="Settings">
          <header><h2>Settings</h2><span class="muted">secrets left out</span></header>
          {config ? <Facts facts={Object.entries(config).map(([name, value]) => [name.replace(/_/g, "-"), shown(name, value)])} /> : <p class="muted">…</p>}
          <Same command="admin.config" payload={{}} />
        </section>
      </div>
      {stopping && (
        <Act title="Stop the service" verb="Stop" danger typed="stop" close={() => setStopping(false)} deed={{ command: "admin.shutdown", payload: {} }} done={() => "The service is stopping"}>
          <p>Requests in flight are answered, then the process ends. It has to be started again from outside; this page then reconnects automatically.</p>
        </Act>
      )}
    </Page>
  );
}

function BackupLines() {
  const line = backupLine();
  return (
    <section class="same" aria-label="The same in code">
      <div class="line">
        <span class="tongue">Shell</span>
        <code tabIndex={0}>{line}</code>
        <Copy text={line} label="Copy the Shell line" />
      </div>
    </section>
  );
}

interface ClusterFigures {
  nodes?: Record<string, unknown>[];
}

function Cluster({ cluster }: { cluster: ClusterFigures }) {
  const nodes = cluster.nodes ?? [];
  const names = [...new Set(nodes.flatMap((node) => Object.keys(node)))];
  return (
    <section class="panel wide" aria-label="Cluster">
      <header><h2>Cluster</h2><span class="muted">{count(nodes.length)} nodes</span></header>
      <Facts facts={Object.entries(cluster).filter(([, value]) => typeof value !== "object").map(([name, value]) => [name.replace(/_/g, " "), shown(name, value)])} />
      {nodes.length > 0 && (
        <table>
          <thead><tr>{names.map((name) => <th scope="col" key={name}>{name.replace(/_/g, " ")}</th>)}</tr></thead>
          <tbody>{nodes.map((node, place) => <tr key={place}>{names.map((name) => <td key={name}>{shown(name, node[name])}</td>)}</tr>)}</tbody>
        </table>
      )}
    </section>
  );
}
