/** Fields of forms. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { fault, Raw } from "../wire/json";
import { Icon } from "./icons";

interface TextProps {
  label: string;
  value: string;
  change: (value: string) => void;
  hint?: string;
  type?: "text" | "number";
  placeholder?: string;
  list?: string;
  min?: number;
  max?: number;
  required?: boolean;
  focus?: boolean;
}

export function Text({ label, value, change, hint, type = "text", placeholder, list, min, max, required, focus }: TextProps) {
  return (
    <label class="field">
      <span>{label}</span>
      <input type={type} value={value} placeholder={placeholder} list={list} min={min} max={max} required={required} step={type === "number" ? "any" : undefined} autocomplete="off" spellcheck={false} data-autofocus={focus || undefined} onInput={(event) => change(event.currentTarget.value)} />
      {hint && <small>{hint}</small>}
    </label>
  );
}

/** What was typed as a stored value: JSON where it is JSON (or was to be), else a text. */
export interface Draft {
  text: string;
  as: "json" | "text";
}

export function rawOf(draft: Draft): Raw | undefined {
  if (draft.as === "text") return new Raw(JSON.stringify(draft.text));
  return draft.text.trim() && !fault(draft.text) ? new Raw(draft.text.trim()) : undefined;
}

export function ValueField({ label, draft, change, rows = 6 }: { label: string; draft: Draft; change: (draft: Draft) => void; rows?: number }) {
  const wrong = draft.as === "json" && draft.text.trim() ? fault(draft.text) : undefined;
  return (
    <div class="field">
      <div class="between">
        <label for={`value-${label}`}>{label}</label>
        <Segments label="Kind of value" value={draft.as} change={(as) => change({ ...draft, as: as as Draft["as"] })} choices={[["json", "JSON"], ["text", "Text"]]} />
      </div>
      <textarea id={`value-${label}`} class="mono" rows={rows} value={draft.text} spellcheck={false} aria-invalid={wrong ? true : undefined} aria-describedby={`value-${label}-hint`} onInput={(event) => change({ ...draft, text: event.currentTarget.value })} />
      <small id={`value-${label}-hint`} class={wrong ? "wrong" : ""}>{wrong ? `Not JSON: ${wrong}. Choose Text to store it as it is.` : draft.as === "json" ? "Stored as this JSON, digit for digit." : "Stored as this text."}</small>
    </div>
  );
}

export function Segments({ label, value, change, choices }: { label: string; value: string; change: (value: string) => void; choices: [string, ComponentChildren][] }) {
  return (
    <div class="segments" role="group" aria-label={label}>
      {choices.map(([name, title]) => (
        <button type="button" key={name} aria-pressed={name === value} onClick={() => change(name)}>{title}</button>
      ))}
    </div>
  );
}

export function Tabs({ label, value, change, choices }: { label: string; value: string; change: (value: string) => void; choices: [string, string, number?][] }) {
  const move = (event: KeyboardEvent) => {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!by) return;
    const place = choices.findIndex(([name]) => name === value);
    const next = choices[(place + by + choices.length) % choices.length]!;
    change(next[0]);
    (event.currentTarget as HTMLElement).querySelector<HTMLElement>(`[data-tab="${next[0]}"]`)?.focus();
  };
  return (
    <div class="tabs" role="tablist" aria-label={label} onKeyDown={move}>
      {choices.map(([name, title, number]) => (
        <button type="button" role="tab" key={name} data-tab={name} aria-selected={name === value} tabIndex={name === value ? 0 : -1} onClick={() => change(name)}>
          {title}
          {number !== undefined && <span class="badge">{number.toLocaleString("en-US")}</span>}
        </button>
      ))}
    </div>
  );
}

export function Filter({ value, change, placeholder }: { value: string; change: (value: string) => void; placeholder: string }) {
  return (
    <label class="filter">
      <Icon name="search" />
      <input type="search" value={value} placeholder={placeholder} aria-label={placeholder} autocomplete="off" spellcheck={false} data-filter onInput={(event) => change(event.currentTarget.value)} />
    </label>
  );
}

/** Names and texts, for headers and metadata. */
export function Pairs({ label, pairs, change }: { label: string; pairs: [string, string][]; change: (pairs: [string, string][]) => void }) {
  return (
    <fieldset class="pairs">
      <legend>{label}</legend>
      {pairs.map(([name, text], place) => (
        <div class="pair" key={place}>
          <input aria-label={`${label}: name ${place + 1}`} placeholder="name" value={name} onInput={(event) => change(pairs.map((one, at) => (at === place ? [event.currentTarget.value, text] : one)))} />
          <input aria-label={`${label}: text ${place + 1}`} placeholder="text" value={text} onInput={(event) => change(pairs.map((one, at) => (at === place ? [name, event.currentTarget.value] : one)))} />
          <button type="button" class="ghost" aria-label="Remove" onClick={() => change(pairs.filter((_, at) => at !== place))}><Icon name="close" /></button>
        </div>
      ))}
      <button type="button" class="ghost" onClick={() => change([...pairs, ["", ""]])}><Icon name="plus" /> Add</button>
    </fieldset>
  );
}

export function pairsOf(pairs: [string, string][]): Record<string, string> | undefined {
  const given = pairs.filter(([name]) => name);
  return given.length ? Object.fromEntries(given) : undefined;
}

export const useDraft = (text = "", as: Draft["as"] = "json") => useState<Draft>({ text, as });
