import { useState } from "preact/hooks";
import { count, perSecond, plural } from "../format";
import { Act } from "../parts/dialog";
import { Filter, Pairs, pairsOf, rawOf, Text, useDraft, ValueField } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Page } from "../parts/page";
import { type Column, Table } from "../parts/table";
import { rooms, type RoomRow, tick, totals } from "../state/live";
import { go } from "../state/route";
import { may } from "../state/session";

const COLUMNS: Column<RoomRow>[] = [
  { id: "name", title: "Room", width: "minmax(9rem, 2fr)", cell: (row) => <span class="name">{row.name}</span>, by: (row) => row.name },
  { id: "events", title: "Events kept", width: "minmax(5.5rem, 1fr)", numeric: true, cell: (row) => count(row.events), by: (row) => row.events, help: "Events that retention has not removed" },
  { id: "total", title: "Published", width: "minmax(5.5rem, 1fr)", numeric: true, from: 620, cell: (row) => count(row.published_total), by: (row) => row.published_total, help: "Events ever; the next one has this offset" },
  { id: "in", title: "In /s", width: "minmax(4rem, 1fr)", numeric: true, from: 480, cell: (row) => <span class={row.in ? "" : "zero"}>{perSecond(row.in)}</span>, by: (row) => row.in },
  { id: "subscribers", title: "Subscribers", width: "minmax(5.5rem, 1fr)", numeric: true, cell: (row) => <span class={row.subscribers ? "" : "zero"}>{count(row.subscribers)}</span>, by: (row) => row.subscribers },
  { id: "behind", title: "Behind", width: "minmax(6rem, 1.5fr)", from: 560, cell: (row) => <Behind row={row} />, by: (row) => furthest(row)?.[1] ?? null, numeric: true, help: "Events that the durable subscription furthest behind has not done" },
];

function Behind({ row }: { row: RoomRow }) {
  const most = furthest(row);
  if (!most) return <span class="zero">–</span>;
  const others = Object.keys(row.lag!).length - 1;
  return <span class={most[1] ? "warntext" : "zero"} title={Object.entries(row.lag!).map(([name, lag]) => `${name}: ${count(lag)}`).join("\n")}>{count(most[1])} {most[0]}{others ? ` +${others}` : ""}</span>;
}

/** The durable subscription that is furthest behind: its name and how many events it has not done. */
function furthest(row: RoomRow): [string, number] | undefined {
  return Object.entries(row.lag ?? {}).reduce<[string, number] | undefined>((most, one) => (most && most[1] >= one[1] ? most : one), undefined);
}

export function PublishEvent({ room, close }: { room?: string; close: () => void }) {
  const [name, setName] = useState(room ?? "");
  const [kind, setKind] = useState("message");
  const [draft, setDraft] = useDraft('{"text": "hello"}');
  const [metadata, setMetadata] = useState<[string, string][]>([]);
  const data = rawOf(draft);
  return (
    <Act title={room ? `Publish to ${room}` : "Publish an event"} verb="Publish" close={close} again deed={name && kind && data ? { command: "stream.publish", payload: { room: name, event_type: kind, data, metadata: pairsOf(metadata) } } : undefined} done={(answer) => `Published at offset ${count(answer.offset)}; ${plural(answer.subscribers_notified, "subscriber")} told`}>
      {!room && <Text label="Room" value={name} change={setName} required focus hint="Made where it doesn't exist yet." />}
      <Text label="Event type" value={kind} change={setKind} required />
      <ValueField label="Data" draft={draft} change={setDraft} />
      <Pairs label="Metadata" pairs={metadata} change={setMetadata} />
    </Act>
  );
}

export function Streams() {
  tick.value;
  const [filter, setFilter] = useState("");
  const [publishing, setPublishing] = useState(false);
  const wanted = filter.toLowerCase();
  const rows = [...rooms.values()].filter((row) => row.name.toLowerCase().includes(wanted));
  const more = (totals.value?.rooms ?? 0) - rooms.size;
  return (
    <Page
      fill
      title="Streams"
      actions={
        <>
          <Filter value={filter} change={setFilter} placeholder="Filter rooms" />
          {may("stream", "write") && <button type="button" class="primary" data-new onClick={() => setPublishing(true)}><Icon name="plus" /> Publish</button>}
        </>
      }
    >
      <Table
        label="Rooms"
        rows={rows}
        columns={COLUMNS}
        id={(row) => row.name}
        open={(row) => go("streams", row.name)}
        sort={{ column: "total", descending: true }}
        empty={filter ? <Empty icon="search" title={`No room has “${filter}” in its name`} /> : <Empty icon="streams" title="No rooms yet"><p>Publishing an event makes its room, and so does subscribing. In Python: <code>client.stream.publish("chat-1", "message", {"{"}"text": "hi"{"}"})</code></p></Empty>}
      />
      <p class="count" role="status">{plural(rows.length, "room")}{more > 0 ? `, and ${count(more)} more that aren't listed` : ""}</p>
      {publishing && <PublishEvent close={() => setPublishing(false)} />}
    </Page>
  );
}
