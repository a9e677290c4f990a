// The score that decides: nDCG@10, or Spearman's correlation where pairs have scores.

import type { Scores } from "../../gen/trainer_pb";

export function metric(scores: Scores | undefined): string {
  return scores?.spearman === undefined ? "nDCG@10" : "Spearman";
}

export function score(scores: Scores | undefined): number {
  return scores?.spearman ?? scores?.ndcg10 ?? 0;
}
