import { useEffect, useState } from "preact/hooks";
import { count, plural, span } from "../format";
import { Empty, Page } from "../parts/page";
import { type Column, Table } from "../parts/table";
import { serviceNow } from "../state/live";
import { connection } from "../wire/connection";

interface Running {
  name: string;
  queue: string;
  since: number;
}

/** The report of a worker process (`synap.worker.presence`). */
interface Worker {
  name: string;
  host: string;
  pid: number;
  queues: string[];
  concurrency: number;
  running: Running[];
  busy: number;
  done: number;
  failed: number;
  started: number;
}

const PREFIX = "synap:worker:";

const columns = (now: number): Column<Worker>[] => [
  { id: "name", title: "Worker", width: "minmax(8rem, 1.5fr)", cell: (worker) => <span><span class="name">{worker.host}</span> <span class="muted">pid {worker.pid}</span></span>, by: (worker) => worker.name },
  { id: "queues", title: "Queues", width: "minmax(7rem, 2fr)", from: 520, cell: (worker) => worker.queues.join(", "), by: (worker) => worker.queues.join() },
  { id: "busy", title: "Busy", width: "5.5rem", numeric: true, cell: (worker) => <span><span class={worker.busy ? "" : "zero"}>{count(worker.busy)}</span> <span class="zero">of {count(worker.concurrency)}</span></span>, by: (worker) => worker.busy, help: "Handlers that run now, of as many as may" },
  { id: "running", title: "Runs now", width: "minmax(8rem, 2.5fr)", from: 420, cell: (worker) => (worker.running.length ? <span title={worker.running.map((job) => `${job.name} of ${job.queue}`).join("\n")}>{worker.running.map((job) => `${job.name.split(".").pop()} for ${span(now - job.since)}`).join(", ")}</span> : <span class="zero">nothing</span>) },
  { id: "done", title: "Done", width: "5.5rem", numeric: true, from: 640, cell: (worker) => count(worker.done), by: (worker) => worker.done },
  { id: "failed", title: "Failed", width: "5.5rem", numeric: true, cell: (worker) => <span class={worker.failed ? "warntext" : "zero"}>{count(worker.failed)}</span>, by: (worker) => worker.failed, help: "Messages requeued or rejected, and leases lost" },
  { id: "up", title: "Up for", width: "7rem", numeric: true, from: 760, cell: (worker) => span(now - worker.started), by: (worker) => now - worker.started },
];

export function Workers() {
  const [workers, setWorkers] = useState<Worker[]>();
  useEffect(() => {
    let over = false;
    const look = async () => {
      const page = await connection.call("kv.scan", { prefix: PREFIX, count: 1000 });
      const keys = page.keys as string[];
      const values = keys.length ? (await connection.call("kv.mget", { keys })).values : [];
      if (!over) setWorkers(values.filter((value: { found: boolean }) => value.found).map((value: { value: Worker }) => value.value));
    };
    void look().catch(() => {});
    const timer = setInterval(() => document.visibilityState === "visible" && void look().catch(() => {}), 2000);
    return () => {
      over = true;
      clearInterval(timer);
    };
  }, []);
  return (
    <Page fill title="Workers">
      <Table
        label="Workers"
        rows={workers ?? []}
        columns={columns(serviceNow())}
        id={(worker) => worker.name}
        sort={{ column: "name", descending: false }}
        empty={workers && <Empty icon="workers" title="No workers of synap.worker run now"><p>Functions that run for the messages of a queue: <code>synap worker myapp.jobs:worker</code>. Consumers that you wrote yourself are on the Clients screen.</p></Empty>}
      />
      <p class="count" role="status">{plural(workers?.length ?? 0, "worker")}</p>
    </Page>
  );
}
