// Slices of live searches: the worst first, and what lost their hits.

import type { SliceRecall } from "../gen/router_pb";

/** What may lose hits, in the order of its colours. */
export const CAUSES = [
  ["the cut", (row: SliceRecall) => row.lostToPrefix],
  ["the graph", (row: SliceRecall) => row.lostToGraph],
  ["codes", (row: SliceRecall) => row.lostToQuantization],
  ["filters", (row: SliceRecall) => row.lostToFilter],
] as const;

function place(row: SliceRecall): number[] {
  return [row.alarm ? 0 : 1, row.numMeasured ? 0 : 1, row.mean - (row.recallTarget ?? 1)];
}

/** Sort slices: alarms, then by how far each is below its target; unmeasured ones last. */
export function worstFirst(slices: readonly SliceRecall[]): SliceRecall[] {
  return [...slices].sort((one, other) => {
    const [here, there] = [place(one), place(other)];
    const at = here.findIndex((value, index) => value !== there[index]);
    return at < 0 ? 0 : (here[at] ?? 0) - (there[at] ?? 0);
  });
}

/** Return a slice's name as people read it. */
export function sliceName(slice: string): string {
  return slice || "(none)";
}
