// A part of a long list at a time: a page with many thousands of entries stays quick.

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

import { count } from "./words";

/** Return the entries to show, and the way to those before and after; null where all are shown. */
export function usePart<T>(all: readonly T[], most: number): { shown: readonly T[]; turn: ComponentChildren } {
  const [wanted, setPage] = useState(0);
  const last = Math.max(0, Math.ceil(all.length / most) - 1);
  const page = Math.min(wanted, last);
  const shown = all.slice(page * most, (page + 1) * most);
  if (!last) return { shown, turn: null };
  const turn = (
    <div class="row">
      <button type="button" class="quiet" disabled={page === 0} onClick={() => setPage(page - 1)}>
        Earlier
      </button>
      <span>
        {count(page * most + 1)} to {count(page * most + shown.length)} of {count(all.length)}
      </span>
      <button type="button" class="quiet" disabled={page === last} onClick={() => setPage(page + 1)}>
        Later
      </button>
    </div>
  );
  return { shown, turn };
}
