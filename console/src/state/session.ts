/** Who is looking: signed in or not, and what the key allows. */
import { computed, signal } from "@preact/signals";
import { connection } from "../wire/connection";

export interface Session {
  version: string;
  /** Whether the service asks for a key at all. */
  keys: boolean;
  signed_in: boolean;
  name: string;
  grants: string[];
  csrf: string;
  /** Seconds until the session ends unless it is renewed. */
  expires_in: number | null;
}

export const session = signal<Session | undefined>(undefined);
export const signInError = signal("");
/** Set while the service can't be reached at all. */
export const unreachable = signal(false);

const ADDRESS = "console/session";
const RENEW_EVERY = 60_000;

async function ask(method: string, body?: unknown): Promise<Session> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (session.value?.csrf) headers["X-CSRF-Token"] = session.value.csrf;
  const response = await fetch(ADDRESS, { method, headers, body: body === undefined ? null : JSON.stringify(body), credentials: "same-origin" });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? response.statusText);
  return answer as Session;
}

function take(found: Session): void {
  const before = session.value;
  session.value = found;
  unreachable.value = false;
  const may = !found.keys || found.signed_in;
  if (may && (connection.status.value === "closed" || before?.csrf !== found.csrf)) connection.open(found.csrf);
  if (!may) connection.close();
}

/** Find out who we are; asked at the start, and when the service refuses the connection. */
export async function refresh(): Promise<void> {
  try {
    take(await ask("GET"));
  } catch {
    unreachable.value = true;
    if (!session.value) setTimeout(refresh, 1500);
  }
}

export async function signIn(key: string): Promise<void> {
  try {
    const found = await ask("POST", { key });
    signInError.value = "";
    take(found);
  } catch (error) {
    signInError.value = (error as Error).message;
  }
}

export async function signOut(): Promise<void> {
  connection.close();
  try {
    take(await ask("DELETE"));
  } catch {
    await refresh();
  }
}

let touched = Date.now();
for (const kind of ["pointerdown", "keydown", "wheel"]) addEventListener(kind, () => (touched = Date.now()), { passive: true });
setInterval(() => {
  const now = session.value;
  // Only while the page is in use: an idle tab is signed out.
  if (now?.keys && now.signed_in && Date.now() - touched < RENEW_EVERY) ask("PUT").then(take, () => {});
}, RENEW_EVERY / 2);

connection.onRefused = () => void refresh();

// ---- what the key allows

type Verb = "read" | "write" | "consume" | "manage";

function fits(pattern: string, name: string): boolean {
  if (pattern === "*" || pattern === "#") return true;
  const source = pattern.split(/[*#]/).map((piece) => piece.replace(/[\\^$.+?()|[\]{}]/g, "\\$&")).join(".*");
  return new RegExp(`^${source}$`, "s").test(name);
}

/** Whether the key allows `verb` on something of that name; without a name, on anything at all. */
export function may(facility: "kv" | "queue" | "stream" | "pubsub", verb: Verb, name?: string): boolean {
  const grants = session.value?.grants ?? [];
  return grants.some((grant) => {
    const [which, what, ...rest] = grant.split(":");
    if (which !== facility && which !== "*") return false;
    if (what !== verb && what !== "*") return false;
    return name === undefined || fits(rest.join(":") || "*", name);
  });
}

export const admin = computed(() => (session.value?.grants ?? []).includes("admin"));
