// Lists that come a page at a time: each page begins after the last entry of the one before.

import { useState } from "preact/hooks";

export interface Pager {
  /** What the page comes after; "": it is the first. */
  after: string;
  next: (last: string) => void;
  back: () => void;
}

export function usePager(): Pager {
  const [passed, setPassed] = useState<string[]>([]);
  return {
    after: passed.at(-1) ?? "",
    next: (last) => setPassed([...passed, last]),
    back: () => setPassed(passed.slice(0, -1)),
  };
}

/** The way to the pages before and after; nothing where there is one page. */
export function Turn(props: { pager: Pager; last: string | undefined; hasMore: boolean }) {
  const { pager, last, hasMore } = props;
  if (!pager.after && !hasMore) return null;
  return (
    <div class="row">
      <button class="quiet" disabled={!pager.after} onClick={pager.back}>
        Newer
      </button>
      <button class="quiet" disabled={!hasMore || !last} onClick={() => last && pager.next(last)}>
        Older
      </button>
    </div>
  );
}
