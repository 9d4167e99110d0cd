import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { clock, count, plural } from "../format";
import { Glance, Same, Value } from "../parts/code";
import { Act } from "../parts/dialog";
import { Filter, Pairs, pairsOf, rawOf, Text, useDraft, ValueField } from "../parts/forms";
import { Icon } from "../parts/icons";
import { Empty, Facts, Page } from "../parts/page";
import { type Column, Table } from "../parts/table";
import { may } from "../state/session";
import { connection, type Refusal } from "../wire/connection";
import type { Raw } from "../wire/json";

interface Message {
  id: number;
  topic: string;
  message: Raw;
  metadata: Record<string, string>;
  timestamp: number;
  message_id: string;
}

const KEPT = 2000;
let serial = 0;

const COLUMNS: Column<Message>[] = [
  { id: "time", title: "Time", width: "minmax(5.5rem, auto)", numeric: true, cell: (message) => clock(message.timestamp) },
  { id: "topic", title: "Topic", width: "minmax(7rem, 1fr)", cell: (message) => <span class="kind">{message.topic}</span> },
  { id: "message", title: "Message", width: "minmax(8rem, 3fr)", cell: (message) => <Glance raw={message.message} /> },
];

function Publish({ close }: { close: () => void }) {
  const [topic, setTopic] = useState("");
  const [draft, setDraft] = useDraft('{"text": "hello"}');
  const [metadata, setMetadata] = useState<[string, string][]>([]);
  const message = rawOf(draft);
  return (
    <Act title="Publish to a topic" verb="Publish" close={close} again deed={topic && message ? { command: "pubsub.publish", payload: { topic, message, metadata: pairsOf(metadata) } } : undefined} done={(answer) => (answer.subscribers_matched ? `Handed to ${plural(answer.subscribers_matched, "subscription")}` : "Nobody is subscribed to that topic now")}>
      <Text label="Topic" value={topic} change={setTopic} required focus placeholder="notifications.email" hint="words between dots" />
      <ValueField label="Message" draft={draft} change={setDraft} />
      <Pairs label="Metadata" pairs={metadata} change={setMetadata} />
    </Act>
  );
}

export function PubSub() {
  const [text, setText] = useState("#");
  const [patterns, setPatterns] = useState<string[]>();
  const [error, setError] = useState("");
  const [filter, setFilter] = useState("");
  const [paused, setPaused] = useState(false);
  const [open, setOpen] = useState<number>();
  const [publishing, setPublishing] = useState(false);
  const [topics, setTopics] = useState<string[]>([]);
  const [, redraw] = useState(0);
  const messages = useRef<Message[]>([]);
  const total = useRef(0);
  const isPaused = useRef(false);
  isPaused.current = paused;
  const read = may("pubsub", "read");

  useEffect(() => {
    if (!patterns?.length) return;
    let dirty = false;
    const stop = connection.subscribe({
      command: "pubsub.subscribe",
      exact: true,
      payload: () => ({ topics: patterns }),
      started: () => setError(""),
      item: (message: Message) => {
        total.current++;
        if (isPaused.current) return;
        messages.current.push({ ...message, id: ++serial });
        dirty = true;
      },
      ended: (refusal: Refusal) => {
        setError(refusal.code === "SLOW_CONSUMER" ? "More messages came than this page could take, so the service ended the subscription. Narrow the patterns down and listen again." : refusal.message);
        setPatterns(undefined);
      },
    });
    const timer = setInterval(() => {
      if (!dirty) return;
      dirty = false;
      if (messages.current.length > KEPT) messages.current.splice(0, messages.current.length - KEPT);
      redraw((stamp) => stamp + 1);
    }, 100);
    return () => {
      stop();
      clearInterval(timer);
    };
  }, [patterns?.join(" ")]);
  useEffect(() => {
    if (!read) return;
    const look = () => connection.call("pubsub.topics").then((answer) => setTopics(answer.topics as string[]), () => {});
    void look();
    const timer = setInterval(look, 3000);
    return () => clearInterval(timer);
  }, []);

  const last = messages.current[messages.current.length - 1]?.id ?? 0;
  const wanted = filter.toLowerCase();
  const shown = useMemo(() => (wanted ? messages.current.filter((message) => message.topic.toLowerCase().includes(wanted) || message.message.text.toLowerCase().includes(wanted)) : [...messages.current]), [wanted, last]);
  const one = messages.current.find((message) => message.id === open);
  const listening = !!patterns?.length;
  return (
    <Page fill title="Pub/sub" actions={may("pubsub", "write") && <button type="button" class="primary" data-new onClick={() => setPublishing(true)}><Icon name="send" /> Publish</button>}>
      {read && (
        <form
          class="bar"
          onSubmit={(event) => {
            event.preventDefault();
            if (listening) setPatterns(undefined);
            else {
              messages.current = [];
              total.current = 0;
              setOpen(undefined);
              setPatterns(text.split(/[\s,]+/).filter(Boolean));
            }
          }}
        >
          <label class="filter grow">
            <Icon name="pubsub" />
            <input aria-label="Patterns to listen to" placeholder="Patterns: notifications.# orders.*.paid" value={text} disabled={listening} onInput={(event) => setText(event.currentTarget.value)} />
          </label>
          <button type="submit" class={listening ? "" : "primary"} disabled={!text.trim()}>{listening ? "Stop" : "Listen"}</button>
          {listening && <button type="button" aria-pressed={paused} onClick={() => setPaused(!paused)}><Icon name={paused ? "play" : "pause"} /> {paused ? "Resume" : "Pause"}</button>}
          <Filter value={filter} change={setFilter} placeholder="Filter messages" />
        </form>
      )}
      {error && <p class="error" role="alert">{error}</p>}
      {topics.length > 0 && (
        <section class="cursors" aria-label="Patterns subscribed to now">
          <span class="muted">Subscribed to now:</span>
          {topics.slice(0, 24).map((topic) => <span class="cursorchip" key={topic}><code>{topic}</code></span>)}
          {topics.length > 24 && <span class="muted">and {count(topics.length - 24)} more</span>}
        </section>
      )}
      <div class={`split${one ? " open" : ""}`}>
        <div class="column">
          <Table
            label="Messages"
            rows={shown}
            columns={COLUMNS}
            id={(message) => String(message.id)}
            open={(message) => setOpen(message.id === open ? undefined : message.id)}
            active={open === undefined ? undefined : String(open)}
            follow={!paused}
            empty={listening ? <Empty icon="pubsub" title="Listening…"><p>Messages appear here from now on. What was published before is gone: topics keep nothing.</p></Empty> : <Empty icon="pubsub" title="Not listening"><p><code>*</code> stands for one word, <code>#</code> for any number: <code>orders.*.paid</code>, <code>notifications.#</code>.</p></Empty>}
          />
          <p class="count" role="status">{listening ? `${plural(total.current, "message")} since you began to listen` : ""}</p>
          {listening && <Same command="pubsub.subscribe" payload={{ topics: patterns }} />}
        </div>
        {one && (
          <aside class="detail" aria-label="Message">
            <header>
              <h2>{one.topic}</h2>
              <button type="button" class="ghost" aria-label="Close" onClick={() => setOpen(undefined)}><Icon name="close" /></button>
            </header>
            <Value raw={one.message} label="Message" />
            <Facts facts={[["Time", clock(one.timestamp)], ["Id", <code key="id">{one.message_id}</code>]]} />
            {Object.keys(one.metadata).length > 0 && <><h3>Metadata</h3><Facts facts={Object.entries(one.metadata)} /></>}
          </aside>
        )}
      </div>
      {publishing && <Publish close={() => setPublishing(false)} />}
    </Page>
  );
}
