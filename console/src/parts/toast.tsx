/** Short news at the bottom of the screen, read out by screen readers. */
import { signal } from "@preact/signals";
import { Icon } from "./icons";

interface News {
  id: number;
  text: string;
  tone: "good" | "bad";
}

const news = signal<News[]>([]);
let serial = 0;

export function say(text: string, tone: "good" | "bad" = "good"): void {
  const one = { id: ++serial, text, tone };
  news.value = [...news.value.slice(-3), one];
  setTimeout(() => (news.value = news.value.filter((other) => other !== one)), tone === "bad" ? 15_000 : 8000);
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {news.value.map((one) => (
        <div key={one.id} class={`toast ${one.tone}`}>
          <Icon name={one.tone === "good" ? "check" : "alert"} />
          <span>{one.text}</span>
        </div>
      ))}
    </div>
  );
}
