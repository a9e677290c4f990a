// matryoshka.json, as far as the page shows it. The encoder has checked the file.

/** What was measured at one size: of texts that are searched, or of pairs with scores. */
interface SizeScores {
  dim: number;
  ndcg10?: number;
  spearman?: number;
}

export interface Card {
  prompts: Record<string, string>;
  base_model: string | null;
  quality: {
    data: string;
    num_queries: number;
    num_documents: number;
    before: SizeScores[];
    after: SizeScores[];
    judged_by: "labels" | "neighbours";
  } | null;
}

export interface Retained {
  dim: number;
  score: number;
  /** Share of the full size's score. */
  share: number;
}

export function readCard(json: string): Card | undefined {
  return json ? (JSON.parse(json) as Card) : undefined;
}

/** Return what each size keeps; nothing, if nothing was measured. */
export function retained(card: Card): Retained[] {
  const measured = (card.quality?.after ?? []).map((one) => ({ dim: one.dim, score: one.ndcg10 ?? one.spearman ?? 0 }));
  const full = measured.reduce((most, one) => (one.dim > most.dim ? one : most), { dim: 0, score: 0 });
  return measured.map((one) => ({ ...one, share: full.score ? one.score / full.score : 0 }));
}
