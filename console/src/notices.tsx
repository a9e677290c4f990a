// What stands where there is nothing else to see: an error, a wait, an empty list.

import { Code } from "@connectrpc/connect";
import type { ComponentChildren } from "preact";

import type { Loaded } from "./load";
import type { Problem } from "./services";

// The same call would be refused again.
const HOPELESS = new Set([Code.PermissionDenied, Code.Unauthenticated, Code.InvalidArgument, Code.NotFound]);

export function Alert(props: { problem?: Problem | undefined; onRetry?: () => void }) {
  if (!props.problem) return null;
  return (
    <div class="alert" role="alert">
      <p>{props.problem.message}</p>
      {props.problem.next && <p>{props.problem.next}</p>}
      {props.onRetry && !HOPELESS.has(props.problem.code) && <button onClick={props.onRetry}>Try again</button>}
    </div>
  );
}

/** An empty state says what to do first. */
export function Empty(props: { title: string; children: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{props.title}</h2>
      {props.children}
    </div>
  );
}

/** Show what was loaded, or why it was not, or that it is awaited. */
export function Await<T>(props: { of: Loaded<T>; children: (value: T) => ComponentChildren }) {
  const { value, problem, isWaiting, reload } = props.of;
  return (
    <>
      <Alert problem={problem} onRetry={reload} />
      {value !== undefined ? props.children(value) : isWaiting && <p role="status">Loading …</p>}
    </>
  );
}

/** How far long work is. */
export function Bar(props: { step: string; done: number; total: number }) {
  const { step, done, total } = props;
  return (
    <div class="bar" role="status">
      <span>{step}</span>
      <progress value={total ? done : undefined} max={total || undefined} aria-label={step} />
      <span>{total ? `${done.toLocaleString("en")} of ${total.toLocaleString("en")}` : ""}</span>
    </div>
  );
}

/** Something to copy. */
export function Snippet(props: { title: string; text: string }) {
  return (
    <details class="code">
      <summary>{props.title}</summary>
      <button class="quiet" onClick={() => void navigator.clipboard.writeText(props.text)}>
        Copy
      </button>
      <pre tabIndex={0}>{props.text}</pre>
    </details>
  );
}
