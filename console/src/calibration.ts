// What was measured of a collection, and which plan a target gets: as the router chooses it.

import { type Calibration, type MeasuredPlan, type MeasuredRecall, Objective, QuerySource } from "../gen/router_pb";

import { count } from "./words";

export type Cost = "latency" | "memory";

/** Return what a calibration chooses its plans by. */
export function costOf(calibration: Calibration): Cost {
  return calibration.objective === Objective.MEMORY ? "memory" : "latency";
}

/** Return a plan's cost: milliseconds, or bytes of each point. */
export function price(plan: MeasuredPlan, cost: Cost): number {
  return cost === "memory" ? plan.memoryBytes : plan.p50Ms;
}

/** Return what a plan is sure of among the cheapest; undefined: it is none of these. */
export function promised(recall: MeasuredRecall | undefined, cost: Cost): number | undefined {
  return cost === "memory" ? recall?.promisedByMemory : recall?.promisedByLatency;
}

/** Tell whether a slice had queries enough to choose its own plan for a target. */
export function saysEnough(calibration: Calibration, slice: string, target: number): boolean {
  const asked = calibration.sliceQueries[slice] ?? 0;
  return asked > 0 && (1 - calibration.confidence) ** (1 / asked) >= target;
}

export interface Choice {
  plan: MeasuredPlan;
  /** What it is sure of. */
  recall: number;
  /** Whose queries say so; "": all. */
  slice: string;
}

/** Return the cheapest plan that is sure of a target; exact search is sure of any. */
export function choose(calibration: Calibration, target: number, slice: string, cost: Cost): Choice | undefined {
  const basis = saysEnough(calibration, slice, target) ? slice : "";
  const other = cost === "memory" ? "latency" : "memory";
  const [plan] = calibration.plans
    .filter((one) => (promised(one.recalls[basis], cost) ?? 0) >= target)
    .sort((one, two) => price(one, cost) - price(two, cost) || price(one, other) - price(two, other));
  return plan && { plan, recall: promised(plan.recalls[basis], cost) ?? 0, slice: basis };
}

const SOURCES: Record<QuerySource, string> = {
  [QuerySource.UNSPECIFIED]: "queries",
  [QuerySource.GIVEN]: "queries that were given",
  [QuerySource.RECENT]: "recent searches",
  [QuerySource.DOCUMENTS]: "documents in place of queries",
};

/** Say on what a calibration was measured: "1,200 recent searches". */
export function measuredOn(calibration: Calibration): string {
  return `${count(calibration.numQueries)} ${SOURCES[calibration.source]}`;
}
