// Whether the services answer, by calls that the page makes anyway.

import { Code } from "@connectrpc/connect";
import { Fragment } from "preact";

import type { Loaded } from "./load";
import type { Problem } from "./services";

const AWAY = new Set([Code.Unavailable, Code.DeadlineExceeded]);
const CLOSED = new Set([Code.PermissionDenied, Code.Unauthenticated]);

function said(of: Loaded<unknown>): { look?: string; text: string } {
  const { value, problem } = of;
  if (problem) return trouble(problem);
  return value === undefined ? { text: "asked …" } : { look: "good", text: "ready" };
}

function trouble(problem: Problem): { look?: string; text: string } {
  if (AWAY.has(problem.code)) return { look: "bad", text: `away: ${problem.message}` };
  if (CLOSED.has(problem.code)) return { text: "answers, but not everything to this key" };
  return { look: "bad", text: problem.message };
}

/** A line for each service. */
export function Health(props: { services: readonly (readonly [name: string, call: Loaded<unknown>])[] }) {
  return (
    <dl aria-live="polite">
      {props.services.map(([name, call]) => {
        const { look, text } = said(call);
        return (
          <Fragment key={name}>
            <dt>{name}</dt>
            <dd class={look}>{text}</dd>
          </Fragment>
        );
      })}
    </dl>
  );
}
