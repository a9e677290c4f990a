// Two models by what each held-out query scored: whose queries lose, and how sure that is.

import { extent } from "d3-array";
import { scaleLinear } from "d3-scale";

import type { DimComparison, SliceComparison } from "../../gen/trainer_pb";
import { Table } from "../table";
import { count, moved, share } from "../words";
import { metric, score } from "./scores";

interface Row extends Pick<DimComparison, "dim" | "before" | "after" | "change" | "low" | "high"> {
  slice: string;
  numQueries: number;
}

/** All queries together come first, then what lost most; slices of few queries last. */
function rows(slices: readonly SliceComparison[]): Row[] {
  const all = slices.flatMap(({ slice, numQueries, dims }) => dims.map((one) => ({ ...one, slice, numQueries })));
  const isPart = (row: Row): number => (row.slice ? (row.numQueries < FEWEST ? 2 : 1) : 0);
  return all.sort((one, other) => isPart(one) - isPart(other) || one.change - other.change);
}

// As many as the gate asks for by default: an interval of fewer says little, and of one nothing.
const FEWEST = 30;

/** A loss or a gain is one only if the interval leaves out 0, and rests on enough queries. */
function look(row: Row): string | undefined {
  if (row.numQueries < FEWEST) return "soft";
  return row.high < 0 ? "bad" : row.low > 0 ? "good" : undefined;
}

const WIDTH = 120;
const HEIGHT = 16;

function Interval(props: { row: Row; most: number }) {
  const { low, high, change } = props.row;
  const x = scaleLinear([-props.most, props.most], [2, WIDTH - 2]);
  const middle = HEIGHT / 2;
  return (
    <svg class={`interval ${look(props.row) ?? ""}`} width={WIDTH} height={HEIGHT} aria-hidden="true">
      <line class="zero" x1={x(0)} x2={x(0)} y1="0" y2={HEIGHT} />
      <line class="line" x1={x(low)} x2={x(high)} y1={middle} y2={middle} />
      <circle class="dot" cx={x(change)} cy={middle} r="3" />
    </svg>
  );
}

export function Comparison(props: { caption: string; slices: readonly SliceComparison[] }) {
  const all = rows(props.slices);
  const [low = 0, high = 0] = extent(all.flatMap((row) => [row.low, row.high]));
  const most = Math.max(-low, high) || 1;
  const name = metric(all[0]?.after);
  return (
    <Table
      caption={props.caption}
      rows={all}
      id={(row) => `${row.slice} ${row.dim}`}
      columns={[
        { title: "Slice", by: (row) => row.slice, cell: (row) => row.slice || <strong>all</strong> },
        { title: "Size", isNumber: true, by: (row) => row.dim, cell: (row) => row.dim },
        {
          title: `${name} moved`,
          isNumber: true,
          by: (row) => row.change,
          cell: (row) => <span class={look(row)}>{moved(row.change)}</span>,
        },
        {
          title: "95 % interval",
          isNumber: true,
          cell: (row) => (
            <>
              {row.numQueries < FEWEST && <span class="soft">too few to judge: </span>}
              {moved(row.low)} and {moved(row.high)}
              <Interval row={row} most={most} />
            </>
          ),
        },
        { title: "Before", isNumber: true, by: (row) => score(row.before), cell: (row) => share(score(row.before)) },
        { title: "After", isNumber: true, by: (row) => score(row.after), cell: (row) => share(score(row.after)) },
        { title: "Asked", isNumber: true, by: (row) => row.numQueries, cell: (row) => count(row.numQueries) },
      ]}
    />
  );
}
