import { useState } from "preact/hooks";
import { count, plural } from "../format";
import { Act } from "../parts/dialog";
import { Filter, Pairs, pairsOf, rawOf, Text, useDraft, ValueField } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Page } from "../parts/page";
import { Table } from "../parts/table";
import { isDead, queues, serviceNow, tick, totals } from "../state/live";
import { go } from "../state/route";
import { may } from "../state/session";
import { queueColumns } from "./now";

export function PublishToQueue({ queue, close }: { queue?: string; close: () => void }) {
  const [name, setName] = useState(queue ?? "");
  const [draft, setDraft] = useDraft('{"type": "hello"}');
  const [priority, setPriority] = useState("5");
  const [delay, setDelay] = useState("");
  const [headers, setHeaders] = useState<[string, string][]>([]);
  const message = rawOf(draft);
  const payload = { queue: name, message, priority: priority === "5" || priority === "" ? undefined : Number(priority), headers: pairsOf(headers), delay: delay ? Number(delay) : undefined };
  return (
    <Act title={queue ? `Publish to ${queue}` : "Publish a message"} verb="Publish" close={close} again deed={name && message ? { command: "queue.publish", payload } : undefined} done={(answer) => `Published to ${name} as ${answer.message_id}, position ${count(answer.position)}`}>
      {!queue && <Text label="Queue" value={name} change={setName} required focus hint="Made with defaults where it doesn't exist yet." />}
      <ValueField label="Message" draft={draft} change={setDraft} />
      <div class="pairrow">
        <Text label="Priority" type="number" min={0} max={9} value={priority} change={setPriority} hint="0 to 9, 9 comes out first" />
        <Text label="Delay" type="number" min={0} value={delay} change={setDelay} placeholder="0" hint="seconds to hold it back" />
      </div>
      <Pairs label="Headers" pairs={headers} change={setHeaders} />
    </Act>
  );
}

export function Queues() {
  tick.value;
  const [filter, setFilter] = useState("");
  const [letters, setLetters] = useState(false);
  const [publishing, setPublishing] = useState(false);
  const wanted = filter.toLowerCase();
  const rows = [...queues.values()].filter((row) => (letters || !isDead(row.name)) && row.name.toLowerCase().includes(wanted));
  const more = (totals.value?.queues ?? 0) - queues.size;
  return (
    <Page
      fill
      title="Queues"
      actions={
        <>
          <Filter value={filter} change={setFilter} placeholder="Filter queues" />
          <label class="check"><input type="checkbox" checked={letters} onChange={(event) => setLetters(event.currentTarget.checked)} /> Dead-letter queues</label>
          {may("queue", "write") && <button type="button" class="primary" data-new onClick={() => setPublishing(true)}><Icon name="plus" /> Publish</button>}
        </>
      }
    >
      <Table
        label="Queues"
        rows={rows}
        columns={queueColumns(serviceNow())}
        id={(row) => row.name}
        open={(row) => go("queues", row.name)}
        sort={{ column: "ready", descending: true }}
        empty={filter ? <Empty icon="search" title={`No queue has “${filter}” in its name`} /> : <Empty icon="queues" title="No queues yet"><p>Publishing to a queue makes it.</p></Empty>}
      />
      <p class="count" role="status">{plural(rows.length, "queue")}{more > 0 ? `, and ${count(more)} more that aren't listed: there are too many to watch all` : ""}</p>
      {publishing && <PublishToQueue close={() => setPublishing(false)} />}
    </Page>
  );
}
