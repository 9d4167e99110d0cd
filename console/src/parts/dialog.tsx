/** Dialogs: the browser's own <dialog> traps the focus and closes on Escape. */
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { connection, type Refusal } from "../wire/connection";
import { Same } from "./code";
import { Icon } from "./icons";
import { say } from "./toast";

export function Dialog({ title, close, children, wide }: { title: string; close: () => void; children: ComponentChildren; wide?: boolean }) {
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    element.current!.showModal();
    element.current!.querySelector<HTMLElement>("[data-autofocus], input, textarea, select")?.focus();
    return () => before?.focus?.();
  }, []);
  return (
    <dialog ref={element} class={wide ? "wide" : ""} aria-label={title} onClose={close} onClick={(event) => event.target === event.currentTarget && event.currentTarget.close()}>
      <header>
        <h2>{title}</h2>
        <button type="button" class="ghost" aria-label="Close" onClick={() => element.current!.close()}>
          <Icon name="close" />
        </button>
      </header>
      {children}
    </dialog>
  );
}

interface Deed {
  command: string;
  payload: Record<string, unknown>;
}

interface Props {
  title: string;
  close: () => void;
  /** What the button says. */
  verb: string;
  /** What is done: shown as lines, and sent. Without it (something is missing yet), the button is off. */
  deed: Deed | undefined;
  /** What to say when it is done. */
  done: (answer: any) => string;
  after?: (answer: any) => void;
  danger?: boolean;
  /** Has to be typed before the button works. */
  typed?: string;
  /** Keep the dialog open for another go. */
  again?: boolean;
  children?: ComponentChildren;
}

/** A dialog that sends one command, and shows the lines that do the same. */
export function Act({ title, close, verb, deed, done, after, danger, typed, again, children }: Props) {
  const [word, setWord] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const ready = deed !== undefined && !busy && (typed === undefined || word === typed);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!ready) return;
    setBusy(true);
    setError("");
    try {
      const answer = await connection.call(deed.command, deed.payload);
      say(done(answer));
      after?.(answer);
      if (!again) close();
    } catch (failure) {
      setError(`${(failure as Refusal).message}`);
    }
    setBusy(false);
  };
  return (
    <Dialog title={title} close={close}>
      <form onSubmit={submit}>
        <div class="body">
          {children}
          {typed !== undefined && (
            <label class="field">
              <span>Type <code>{typed}</code> to confirm</span>
              <input value={word} onInput={(event) => setWord(event.currentTarget.value)} autocomplete="off" spellcheck={false} data-autofocus />
            </label>
          )}
          {error && <p class="error" role="alert">{error}</p>}
          {deed && <Same command={deed.command} payload={deed.payload} />}
        </div>
        <footer>
          <button type="button" onClick={close}>Cancel</button>
          <button type="submit" class={danger ? "danger" : "primary"} disabled={!ready}>{verb}</button>
        </footer>
      </form>
    </Dialog>
  );
}
