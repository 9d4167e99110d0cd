/** Dark or light: the system's choice unless the reader made one. */
import { effect, signal } from "@preact/signals";

export type Choice = "auto" | "light" | "dark";

const dark = matchMedia("(prefers-color-scheme: dark)");
function kept(): Choice {
  try {
    const found = localStorage.getItem("synap-theme");
    return found === "light" || found === "dark" ? found : "auto";
  } catch {
    return "auto";
  }
}

export const choice = signal<Choice>(kept());
const system = signal(dark.matches);
export const theme = signal<"light" | "dark">("light");
dark.addEventListener("change", () => (system.value = dark.matches));

effect(() => {
  theme.value = choice.value === "auto" ? (system.value ? "dark" : "light") : choice.value;
  document.documentElement.dataset.theme = theme.value;
  try {
    if (choice.value === "auto") localStorage.removeItem("synap-theme");
    else localStorage.setItem("synap-theme", choice.value);
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }
});
