// Three rankings side by side; lines join what is in two of them.

import { useEffect, useRef, useState } from "preact/hooks";

import type { Hit, SearchResponse } from "../gen/router_pb";

import { share } from "./words";

// As in the stylesheet: a hit with its margin, a heading, the room between columns.
const HIT_PX = 80;
const HEAD_PX = 56;
const GAP_PX = 56;

export interface Ranking {
  title: string;
  answer: SearchResponse;
}

export function Rankings(props: { columns: readonly Ranking[] }) {
  const { columns } = props;
  const exact = new Map(columns.at(-1)!.answer.hits.map((hit, at) => [hit.id, at + 1]));
  return (
    <div class="rankings">
      {columns.map((column) => (
        <section key={column.title} aria-label={column.title}>
          <h2>{column.title}</h2>
          <ol>
            {column.answer.hits.map((hit, at) => (
              <HitCard key={hit.id} hit={hit} rank={at + 1} exactRank={exact.get(hit.id)} />
            ))}
          </ol>
        </section>
      ))}
      <Moves columns={columns} />
    </div>
  );
}

/** A hit, and its place in exact search, which says on narrow screens what lines say on wide ones. */
function HitCard(props: { hit: Hit; rank: number; exactRank: number | undefined }) {
  const { hit, rank, exactRank } = props;
  return (
    <li class={exactRank ? "hit" : "hit lost"} title={hit.text}>
      <p class="head">
        <strong>{rank}</strong>
        <code title={hit.id}>{hit.id}</code>
        <span class="soft">{share(hit.score)}</span>
        {exactRank === undefined && <span class="bad">not in exact</span>}
        {exactRank !== undefined && exactRank !== rank && <span class="soft">exact: {exactRank}</span>}
      </p>
      <p class="text">{hit.text}</p>
    </li>
  );
}

/** Lines from each hit to the place that it has in the next column. */
function Moves(props: { columns: readonly Ranking[] }) {
  const picture = useRef<SVGSVGElement>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => entry && setWidth(entry.contentRect.width));
    if (picture.current) observer.observe(picture.current);
    return () => observer.disconnect();
  }, []);
  const { columns } = props;
  const column = (width - GAP_PX * (columns.length - 1)) / columns.length;
  const lines = columns.slice(1).flatMap((next, at) => {
    const places = new Map(next.answer.hits.map((hit, place) => [hit.id, place]));
    const from = (column + GAP_PX) * at + column;
    return columns[at]!.answer.hits.flatMap((hit, place) => {
      const target = places.get(hit.id);
      if (target === undefined) return [];
      return [{ id: `${at} ${hit.id}`, from, place, target }];
    });
  });
  const y = (place: number): number => HEAD_PX + HIT_PX * place + HIT_PX / 2;
  return (
    <svg ref={picture} aria-hidden="true">
      {width > 0 &&
        lines.map((line) => (
          <path
            key={line.id}
            class={line.place === line.target ? "stayed" : "moved"}
            d={`M${line.from} ${y(line.place)} C${line.from + GAP_PX / 2} ${y(line.place)} ${line.from + GAP_PX / 2} ${y(line.target)} ${line.from + GAP_PX} ${y(line.target)}`}
          />
        ))}
    </svg>
  );
}
