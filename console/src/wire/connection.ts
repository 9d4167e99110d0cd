/**
 * One WebSocket to the service: calls matched by id, subscriptions that outlive the connection.
 *
 * Requests are numbered in a session, so one that was under way when the connection broke is sent again on the next
 * and takes effect once (docs/protocol.md, "Requests that take effect once").
 */
import { signal } from "@preact/signals";
import { decodeExact, encode } from "./json";

export type Status = "connecting" | "live" | "waiting" | "closed";

export class Refusal extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly details: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

interface Call {
  text: string;
  exact: boolean;
  resolve: (payload: any) => void;
  reject: (error: Error) => void;
  timer: number;
}

/** The payload of the subscribe request, built again for each connection. */
export interface Subscription {
  command: string;
  payload: () => Record<string, unknown>;
  item: (item: any) => void;
  ended?: (error: Refusal) => void;
  started?: (answer: any) => void;
  exact?: boolean;
}

const PATIENCE = 20_000;
const session = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Connection {
  readonly status = signal<Status>("closed");
  /** Why the last connection ended, where the service said so. */
  onRefused: () => void = () => {};
  private socket: WebSocket | undefined;
  private csrf = "";
  private number = 0;
  private calls = new Map<string, Call>();
  private wanted = new Set<Subscription>();
  private live = new Map<number, Subscription>();
  private pauses = 0;
  private timer = 0;

  constructor() {
    addEventListener("online", () => this.soon());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.soon());
  }

  /** Connect, and stay connected. `csrf` is the token that belongs to the cookie; empty where no key is asked for. */
  open(csrf: string): void {
    this.csrf = csrf;
    this.close();
    this.connect();
  }

  close(): void {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = undefined;
    socket?.close();
    this.status.value = "closed";
  }

  /** Send a command; resolves with its answer. With `exact`, stored values in it are `Raw`. */
  call<T = any>(command: string, payload: Record<string, unknown> = {}, { exact = false } = {}): Promise<T> {
    return this.request<T>((id) => encode({ command, request_id: id, payload }), exact);
  }

  /** Send several commands that don't wait or subscribe; resolves with one outcome for each. */
  batch(commands: { command: string; payload: Record<string, unknown> }[], exact = false): Promise<any[]> {
    return this.request((id) => encode({ type: "batch", request_id: id, commands }), exact);
  }

  /** Have items pushed from now on, over reconnects too. Returns what ends it. */
  subscribe(subscription: Subscription): () => void {
    this.wanted.add(subscription);
    if (this.status.value === "live") this.ask(subscription);
    return () => {
      this.wanted.delete(subscription);
      for (const [id, one] of this.live)
        if (one === subscription) {
          this.live.delete(id);
          if (this.status.value === "live" && !subscription.command.startsWith("admin."))
            this.call(subscription.command.replace("subscribe", "unsubscribe"), { subscription_id: id }).catch(() => {});
        }
    };
  }

  private request<T>(write: (id: string) => string, exact: boolean, patient = false): Promise<T> {
    const id = `${session}:${++this.number}`;
    return new Promise<T>((resolve, reject) => {
      const giveUp = () => {
        this.calls.delete(id);
        reject(new Refusal("TIMEOUT", "the service has not answered for 20 s; whether it did what was asked is not known"));
      };
      const timer = patient ? 0 : window.setTimeout(giveUp, PATIENCE);
      const call: Call = { text: write(id), exact, resolve, reject, timer };
      this.calls.set(id, call);
      if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(call.text);
    });
  }

  private ask(subscription: Subscription): void {
    const socket = this.socket;
    const { command } = subscription;
    const payload = subscription.payload();
    // Without a timeout: a subscription abandoned here would continue in the service, with its items dropped.
    this.request<any>((id) => encode({ command, request_id: id, payload }), false, true).then(
      (answer) => {
        if (socket !== this.socket) return;
        if (!this.wanted.has(subscription)) return;
        subscription.started?.(answer);
      },
      (error: Refusal) => {
        if (!this.wanted.has(subscription)) return;
        this.wanted.delete(subscription);
        subscription.ended?.(error);
      },
    );
    // The first item may follow its answer in the same packet: the id must be known before promises resolve.
    this.starting.set(`${session}:${this.number}`, subscription);
  }

  private starting = new Map<string, Subscription>();

  private connect(): void {
    this.status.value = "connecting";
    const address = new URL("api/v1/ws", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    const protocols = ["synap.console", ...(this.csrf ? [`csrf.${this.csrf}`] : [])];
    const socket = (this.socket = new WebSocket(address, protocols));
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.pauses = 0;
      for (const call of this.calls.values()) socket.send(call.text);
      const wanted = [...this.wanted]; // what is wanted from the next line on asks for itself
      this.status.value = "live";
      for (const subscription of wanted) this.ask(subscription);
    };
    socket.onmessage = (event) => this.take(event.data as string);
    socket.onclose = (event) => {
      if (socket !== this.socket) return;
      this.live.clear();
      for (const id of this.starting.keys()) {
        const call = this.calls.get(id);
        if (call) clearTimeout(call.timer);
        this.calls.delete(id);
      }
      this.starting.clear();
      this.status.value = "waiting";
      if (event.code === 4401 || !opened) this.onRefused();
      const pause = Math.min(4000, 150 * 2 ** this.pauses++) * (0.75 + Math.random() / 2);
      clearTimeout(this.timer);
      this.timer = window.setTimeout(() => this.connect(), pause);
    };
  }

  /** Don't wait for the pause to be over. */
  private soon(): void {
    if (this.status.value !== "waiting") return;
    clearTimeout(this.timer);
    this.connect();
  }

  private take(text: string): void {
    const message = JSON.parse(text);
    if (message.type === "response" || message.type === "batch_response") {
      const call = this.calls.get(message.request_id);
      const subscription = this.starting.get(message.request_id);
      this.starting.delete(message.request_id);
      if (!call) return;
      this.calls.delete(message.request_id);
      clearTimeout(call.timer);
      if (message.success === false) {
        const { code, message: words, details } = message.error;
        call.reject(new Refusal(code, words, details));
      } else {
        const answer: any = call.exact ? decodeExact(text) : message;
        if (subscription && this.wanted.has(subscription)) this.live.set(message.payload.subscription_id, subscription);
        else if (subscription) this.unwanted(subscription, message.payload.subscription_id);
        call.resolve(message.type === "response" ? answer.payload : answer.results);
      }
      return;
    }
    const subscription = this.live.get(message.subscription_id);
    if (!subscription) return;
    if (message.type === "ended") {
      this.live.delete(message.subscription_id);
      const { code, message: words, details } = message.error;
      if (this.wanted.delete(subscription)) subscription.ended?.(new Refusal(code, words, details));
    } else subscription.item(subscription.exact ? decodeExact(text) : message);
  }

  private unwanted(subscription: Subscription, id: number): void {
    if (!subscription.command.startsWith("admin."))
      this.call(subscription.command.replace("subscribe", "unsubscribe"), { subscription_id: id }).catch(() => {});
  }
}

export const connection = new Connection();
