// The question for a key. It is kept in the session only.

import { useEffect, useRef, useState } from "preact/hooks";

import { key } from "./services";

export function KeyDialog(props: { isRefused: boolean; onEntered: () => void; onClosed: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [value, setValue] = useState("");
  useEffect(() => dialog.current?.showModal(), []);
  const enter = (event: Event): void => {
    event.preventDefault();
    key.set(value.trim());
    props.onEntered();
  };
  const forget = (): void => {
    key.forget();
    props.onEntered();
  };
  return (
    <dialog ref={dialog} onClose={props.onClosed} aria-labelledby="key-title">
      <form onSubmit={enter}>
        <h2 id="key-title">API key</h2>
        <p>
          {props.isRefused && (key.get() ? "The service does not know that key. " : "This service asks for a key. ")}
          A key is kept until this tab is closed, and sent to this address only.
        </p>
        <label>
          Key
          <input
            type="password"
            autocomplete="off"
            spellcheck={false}
            required
            value={value}
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        <div class="row">
          <button type="submit">Use this key</button>
          {key.get() && (
            <button type="button" class="quiet" onClick={forget}>
              Forget the key
            </button>
          )}
          <button type="button" class="quiet" onClick={() => dialog.current?.close()}>
            Cancel
          </button>
        </div>
      </form>
    </dialog>
  );
}
