import { useState } from "preact/hooks";
import { Mark } from "../parts/icons";
import { signIn, signInError } from "../state/session";

export function SignIn() {
  const [key, setKey] = useState("");
  const [busy, setBusy] = useState(false);
  return (
    <main class="signin" id="main">
      <form
        onSubmit={async (event) => {
          event.preventDefault();
          setBusy(true);
          await signIn(key);
          setKey("");
          setBusy(false);
        }}
      >
        <Mark />
        <h1>Sign in to {location.host}</h1>
        <label class="field">
          <span>API key</span>
          <input type="password" name="key" value={key} autocomplete="current-password" required autofocus onInput={(event) => setKey(event.currentTarget.value)} />
        </label>
        {signInError.value && <p class="error" role="alert">{signInError.value}</p>}
        <button type="submit" class="primary" disabled={busy || !key}>Sign in</button>
        <p class="note">The key is sent once and not kept in this browser: it becomes a short-lived cookie that scripts can't read. What you see is what the key is allowed to.</p>
      </form>
    </main>
  );
}
