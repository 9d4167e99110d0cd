import { effect, signal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { Dialog } from "./parts/dialog";
import { Icon, Mark, type IconName } from "./parts/icons";
import { Toasts } from "./parts/toast";
import { Clients } from "./screens/clients";
import { Keys } from "./screens/keys";
import { Now, problems } from "./screens/now";
import { PubSub } from "./screens/pubsub";
import { Queue } from "./screens/queue";
import { Queues } from "./screens/queues";
import { Server } from "./screens/server";
import { SignIn } from "./screens/signin";
import { Room } from "./screens/room";
import { Streams } from "./screens/streams";
import { TryIt } from "./screens/tryit";
import { Workers } from "./screens/workers";
import { tick } from "./state/live";
import { go, link, route } from "./state/route";
import { admin, may, session, signOut, unreachable } from "./state/session";
import { choice, type Choice } from "./state/theme";
import { connection } from "./wire/connection";

interface Screen {
  id: string;
  title: string;
  icon: IconName;
  key: string;
  list: ComponentType<{ name?: string }>;
  one?: ComponentType<{ name: string }>;
  shown: () => boolean;
}

const SCREENS: Screen[] = [
  { id: "now", title: "Now", icon: "now", key: "n", list: Now, shown: () => admin.value },
  { id: "queues", title: "Queues", icon: "queues", key: "q", list: Queues, one: Queue, shown: () => may("queue", "read") || may("queue", "write") || may("queue", "consume") },
  { id: "streams", title: "Streams", icon: "streams", key: "s", list: Streams, one: Room, shown: () => may("stream", "read") || may("stream", "write") },
  { id: "keys", title: "Keys", icon: "keys", key: "k", list: Keys, one: Keys, shown: () => may("kv", "read") },
  { id: "pubsub", title: "Pub/sub", icon: "pubsub", key: "p", list: PubSub, shown: () => may("pubsub", "read") || may("pubsub", "write") },
  { id: "clients", title: "Clients", icon: "clients", key: "c", list: Clients, shown: () => admin.value },
  { id: "workers", title: "Workers", icon: "workers", key: "w", list: Workers, shown: () => admin.value || may("kv", "read") },
  { id: "try", title: "Try it", icon: "try", key: "t", list: TryIt, shown: () => true },
  { id: "server", title: "Server", icon: "server", key: "v", list: Server, shown: () => admin.value },
];

const helping = signal(false);

const NEXT: Record<Choice, Choice> = { auto: "light", light: "dark", dark: "auto" };

function State() {
  const status = connection.status.value;
  const word = { live: "Live", connecting: "Connecting…", waiting: "Reconnecting…", closed: "Not connected" }[status];
  return (
    <span class={`state ${status}`} role="status">
      <span class="dot" aria-hidden="true" />
      {word}
    </span>
  );
}

function Help() {
  if (!helping.value) return null;
  const keys: [string, string][] = [
    ["/", "Filter what is on the screen"],
    ["↑ ↓ or j k", "Move in a list"],
    ["Enter", "Open"],
    ["Space", "Select"],
    ["Esc", "Close, go back"],
    ["n", "New: publish, set, whatever the screen has"],
    ...SCREENS.filter((screen) => screen.shown()).map((screen): [string, string] => [`g ${screen.key}`, screen.title]),
    ["?", "These keys"],
  ];
  return (
    <Dialog title="Keys" close={() => (helping.value = false)}>
      <div class="body">
        <dl class="keyhelp">
          {keys.map(([key, what]) => (
            <div key={key}>
              <dt><kbd>{key}</kbd></dt>
              <dd>{what}</dd>
            </div>
          ))}
        </dl>
      </div>
    </Dialog>
  );
}

function useKeys(): void {
  useEffect(() => {
    let going = 0;
    const press = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      const target = event.target as HTMLElement;
      // A dialog that has just closed may keep the focus in one of its fields for a moment.
      const field = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && !target.closest("dialog");
      const typing = field && (target as HTMLInputElement).type !== "checkbox";
      if (event.key === "Escape") {
        if (typing) target.blur();
        else if (route.value.name !== undefined) go(route.value.screen);
        return;
      }
      if (typing) return;
      if (Date.now() - going < 1200) {
        going = 0;
        const screen = SCREENS.find((one) => one.key === event.key && one.shown());
        if (screen) {
          event.preventDefault();
          go(screen.id);
        }
        return;
      }
      if (event.key === "g") going = Date.now();
      else if (event.key === "?") helping.value = true;
      else if (event.key === "/") {
        event.preventDefault();
        document.querySelector<HTMLElement>("[data-filter]")?.focus();
      } else if (event.key === "n") {
        event.preventDefault();
        document.querySelector<HTMLElement>("[data-new]")?.click();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

effect(() => {
  const { screen, name } = route.value;
  const title = SCREENS.find((one) => one.id === screen)?.title ?? "Synap";
  document.title = `${name ? `${name} · ` : ""}${title} · Synap ${location.host}`;
});

function Shell() {
  useKeys();
  const shown = SCREENS.filter((screen) => screen.shown());
  const { screen: id, name } = route.value;
  const screen = shown.find((one) => one.id === id) ?? shown[0]!;
  useEffect(() => document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }), [screen.id]);
  const One = screen.one;
  const List = screen.list;
  tick.value;
  const wrong = admin.value ? problems().length : 0;
  const now = session.value!;
  return (
    <div class="shell">
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main")?.focus(); }}>Skip to the content</a>
      <aside>
        <a class="brand" href={link("now")} title={`Synap ${location.host}`}>
          <Mark />
          <span>
            <strong>Synap</strong>
            <small>{location.host}</small>
          </span>
        </a>
        <nav aria-label="Screens">
          {shown.map((one) => (
            <a key={one.id} href={link(one.id)} aria-current={one.id === screen.id ? "page" : undefined}>
              <Icon name={one.icon} />
              <span>{one.title}</span>
              {one.id === "now" && wrong > 0 && <span class="badge bad" aria-label={`${wrong} problems`}>{wrong}</span>}
            </a>
          ))}
        </nav>
        <div class="foot">
          <State />
          <div class="buttons">
            <button type="button" class="ghost" title={`Theme: ${choice.value}`} aria-label={`Theme: ${choice.value}`} onClick={() => (choice.value = NEXT[choice.value])}>
              <Icon name={choice.value === "auto" ? "auto" : choice.value === "dark" ? "moon" : "sun"} />
            </button>
            <button type="button" class="ghost" title="Keys (?)" aria-label="Keys" onClick={() => (helping.value = true)}><Icon name="help" /></button>
            {now.keys && <button type="button" class="ghost" title="Sign out" aria-label="Sign out" onClick={() => void signOut()}><Icon name="exit" /></button>}
          </div>
          <small class="version">{now.version}{now.keys ? ` · ${now.name}` : ""}</small>
        </div>
      </aside>
      <div class="content" key={`${screen.id}/${One ? (name ?? "") && screen.id !== "keys" ? name : "" : ""}`}>
        {connection.status.value === "waiting" && (
          <div class="banner warn" role="alert">
            <Icon name="alert" />
            <span>The service at {location.host} doesn't answer. The figures are the last ones received; the console reconnects automatically.</span>
          </div>
        )}
        {name !== undefined && One ? <One name={name} /> : <List />}
      </div>
    </div>
  );
}

export function App() {
  const now = session.value;
  return (
    <>
      {!now ? (
        <main class="signin" id="main"><p class="note">{unreachable.value ? `The service at ${location.host} doesn't answer; trying again.` : "Connecting…"}</p></main>
      ) : now.keys && !now.signed_in ? (
        <SignIn />
      ) : (
        <Shell />
      )}
      <Help />
      <Toasts />
    </>
  );
}
