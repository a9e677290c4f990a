// Plans in words.

import type { Plan, Stage } from "../gen/router_pb";

import { size } from "./words";

function stageWords(stage: Stage, isLast: boolean): string {
  const parts = [size(stage.dim, stage.nested)];
  if (!isLast) parts.push(`×${stage.candidates}`);
  if (stage.exact) parts.push("exact");
  else if (stage.ef) parts.push(`ef ${stage.ef}`);
  if (stage.ignoreQuantization) parts.push("originals");
  else if (stage.oversampling) parts.push(`rescored ×${stage.oversampling}`);
  return parts.join(" ");
}

/** Return a plan in a few words: "64 ×200 → 384". */
export function planWords(plan: Plan | undefined): string {
  const stages = plan?.stages ?? [];
  return stages.map((stage, at) => stageWords(stage, at === stages.length - 1)).join(" → ");
}
