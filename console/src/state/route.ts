/** Where we are: `#/queues/emails?tab=dead` is screen "queues", name "emails". */
import { signal } from "@preact/signals";

export interface Route {
  screen: string;
  name: string | undefined;
  query: URLSearchParams;
}

function read(): Route {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [screen = "", ...rest] = path.split("/");
  let name: string | undefined;
  try {
    name = rest.length ? decodeURIComponent(rest.join("/")) : undefined;
  } catch {
    name = undefined;
  }
  return { screen: screen || "now", name: name || undefined, query: new URLSearchParams(query) };
}

export const route = signal<Route>(read());
addEventListener("hashchange", () => (route.value = read()));

export function link(screen: string, name?: string, query?: Record<string, string>): string {
  const search = query ? `?${new URLSearchParams(query)}` : "";
  return `#/${screen}${name === undefined ? "" : `/${encodeURIComponent(name)}`}${search}`;
}

export function go(screen: string, name?: string, query?: Record<string, string>): void {
  location.hash = link(screen, name, query);
}
