/** Stored values, and the lines that do what a button does. */
import { useState } from "preact/hooks";
import { lines } from "../lines";
import { session } from "../state/session";
import { pretty, type Raw, type Token } from "../wire/json";
import { Icon } from "./icons";
import { say } from "./toast";

export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    say("The browser didn't allow copying; select the text instead.", "bad");
    return false;
  }
}

export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState(false);
  return (
    <button
      type="button"
      class="ghost tiny"
      aria-label={label}
      title={label}
      onClick={async () => {
        if (!(await copy(text))) return;
        setDone(true);
        setTimeout(() => setDone(false), 1200);
      }}
    >
      <Icon name={done ? "check" : "copy"} />
    </button>
  );
}

/** Where clients and the command line look by themselves. */
const USUAL = ["http://localhost:15500", "http://127.0.0.1:15500"];

/** The same in Python and in the shell. */
export function Same({ command, payload }: { command: string; payload: Record<string, unknown> }) {
  const { python, shell } = lines(command, payload);
  return (
    <section class="same" aria-label="The same in code">
      {([["Python", python], ["Shell", shell]] as const).map(([name, line]) => (
        <div class="line" key={name}>
          <span class="tongue">{name}</span>
          <code data-line={name.toLowerCase()} tabIndex={0}>{line}</code>
          <Copy text={line} label={`Copy the ${name} line`} />
        </div>
      ))}
      {!USUAL.includes(location.origin) && (
        <p class="where">
          where <code>SYNAP_URL={location.origin}</code>
          {session.value?.keys ? <> and <code>SYNAP_API_KEY</code> are set</> : <> is set</>}
        </p>
      )}
    </section>
  );
}

const LARGEST = 200_000;

function Line({ line }: { line: Token[] }) {
  return (
    <span class="codeline">
      {line.map((token, place) => (token.kind === "punctuation" ? token.text : <span key={place} class={token.kind}>{token.text}</span>))}
      {"\n"}
    </span>
  );
}

/** A stored value, laid out and coloured. */
export function Value({ raw, label = "Value" }: { raw: Raw; label?: string }) {
  const [whole, setWhole] = useState(false);
  const long = raw.text.length > LARGEST;
  const all = long && !whole ? undefined : pretty(raw.text);
  const cut = all && all.length > 2000 && !whole ? all.slice(0, 2000) : all;
  return (
    <div class="value">
      <pre tabIndex={0} aria-label={label}>{cut ? cut.map((line, place) => <Line key={place} line={line} />) : raw.text.slice(0, LARGEST)}</pre>
      <Copy text={raw.text} label={`Copy the ${label.toLowerCase()}`} />
      {((long && !whole) || (all && cut !== all)) && (
        <button type="button" class="ghost" onClick={() => setWhole(true)}>Show all of it</button>
      )}
    </div>
  );
}

/** A value on one line, for rows. */
export function Glance({ raw }: { raw: Raw }) {
  const text = raw.text.length > 300 ? `${raw.text.slice(0, 300)}…` : raw.text;
  return <span class="glance">{text.replace(/\s+/g, " ")}</span>;
}
