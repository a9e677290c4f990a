// What each short size keeps of the exact hits, by the length of its shortlist: what cutting alone loses.

import { extent } from "d3-array";
import { scaleLinear, scaleLog } from "d3-scale";

import type { Calibration, Curve } from "../gen/router_pb";

import { Chart } from "./chart";
import { Legend, Lines, type Series } from "./lines";
import { Table } from "./table";
import { count, share } from "./words";

interface Kept {
  size: string;
  candidates: number;
  recall: number;
}

function kept(curve: Curve): Kept[] {
  return curve.candidates.map((candidates, at) => ({ size: curve.size, candidates, recall: curve.recalls[at] ?? 0 }));
}

export function Curves(props: { calibration: Calibration }) {
  const { curves } = props.calibration;
  const lines: Series[] = curves.map((curve) => ({
    name: curve.size,
    points: kept(curve).map((one) => [one.candidates, one.recall] as const),
  }));
  const all = curves.flatMap(kept);
  const [shortest = 1, longest = 10] = extent(all, (one) => one.candidates);
  const least = Math.min(...all.map((one) => one.recall));
  const x = scaleLog([shortest, Math.max(longest, shortest + 1)], [0, 1]);
  const y = scaleLinear([Math.floor(least * 10) / 10, 1], [0, 1]);
  return (
    <section aria-labelledby="curves">
      <h2 id="curves">What each size keeps</h2>
      <p class="soft">
        The share of the exact hits that a shortlist on a short size holds, before the full size puts them in order.
      </p>
      <Legend series={lines} />
      <Chart
        label="Recall of each short size by the length of its shortlist; the table below has the figures"
        x={x}
        y={y}
        xLabel="Length of the shortlist"
        yLabel="Recall"
        xFormat={x.tickFormat(4, "~s")}
      >
        {(area) => <Lines area={area} series={lines} />}
      </Chart>
      <details>
        <summary>As a table</summary>
        <Table
          caption="Recall by size and length of the shortlist"
          rows={all}
          id={(one) => `${one.size} ${one.candidates}`}
          columns={[
            { title: "Size", cell: (one) => one.size, by: (one) => one.size },
            { title: "Shortlist", isNumber: true, cell: (one) => count(one.candidates), by: (one) => one.candidates },
            { title: "Recall", isNumber: true, cell: (one) => share(one.recall), by: (one) => one.recall },
          ]}
        />
      </details>
    </section>
  );
}
