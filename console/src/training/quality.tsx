// What each size scores on held-out data: before and after a training, and of a rotation.

import { extent } from "d3-array";
import { scaleLinear, scaleLog } from "d3-scale";

import type { DimQuality, NestQuality } from "../../gen/trainer_pb";
import { Chart } from "../chart";
import { Legend, Lines, type Series } from "../lines";
import { type Column, Table } from "../table";
import { moved, share } from "../words";
import { metric, score } from "./scores";

function SizesChart(props: { label: string; yLabel: string; series: readonly Series[] }) {
  const { series } = props;
  const sizes = series[0]?.points.map(([dim]) => dim) ?? [];
  const [least = 1, most = 2] = extent(sizes);
  const [low = 0, high = 1] = extent(series.flatMap(({ points }) => points.map(([, value]) => value)));
  // One size alone, or one value: a scale needs two ends.
  const x = scaleLog().base(2).domain(least < most ? [least, most] : [least / 2, least * 2]);
  const y = scaleLinear().domain(low < high ? [low, high] : [low - 0.1, high + 0.1]).nice();
  return (
    <>
      <Chart label={props.label} x={x} y={y} xLabel="size" yLabel={props.yLabel} xTicks={sizes} xFormat={String}>
        {(area) => <Lines area={area} series={series} />}
      </Chart>
      <Legend series={series} />
    </>
  );
}

// What rounds to nothing is nothing.
const LEAST = 0.0005;

function look(gain: number): string | undefined {
  return gain <= -LEAST ? "bad" : gain >= LEAST ? "good" : undefined;
}

/** Before and after, as a picture and as a table. */
export function Quality(props: { rows: readonly DimQuality[] }) {
  const { rows } = props;
  const name = metric(rows[0]?.after);
  const gain = (row: DimQuality): number => score(row.after) - score(row.before);
  const other: Column<DimQuality>[] =
    name === "Spearman"
      ? [{ title: "Pearson after", isNumber: true, cell: (row) => share(row.after?.pearson ?? 0) }]
      : [
          { title: "recall@10 after", isNumber: true, cell: (row) => share(row.after?.recall10 ?? 0) },
          { title: "MRR@10 after", isNumber: true, cell: (row) => share(row.after?.mrr10 ?? 0) },
        ];
  return (
    <>
      <SizesChart
        label={`${name} at each size, before and after`}
        yLabel={name}
        series={[
          { name: "before", points: rows.map((row) => [row.dim, score(row.before)] as const) },
          { name: "after", points: rows.map((row) => [row.dim, score(row.after)] as const) },
        ]}
      />
      <Table
        caption={`${name} on held-out data`}
        rows={rows}
        id={(row) => String(row.dim)}
        columns={[
          { title: "Size", isNumber: true, by: (row) => row.dim, cell: (row) => row.dim },
          { title: "Before", isNumber: true, by: (row) => score(row.before), cell: (row) => share(score(row.before)) },
          { title: "After", isNumber: true, by: (row) => score(row.after), cell: (row) => share(score(row.after)) },
          {
            title: "Change",
            isNumber: true,
            by: gain,
            cell: (row) => <span class={look(gain(row))}>{moved(gain(row))}</span>,
          },
          ...other,
        ]}
      />
    </>
  );
}

const WAYS = [
  ["as they came", "plain"],
  ["principal axes", "pca"],
  ["the job's rotation", "nested"],
] as const;

/** What a rotation keeps, beside the vectors as they came and their principal axes. */
export function NestedQuality(props: { rows: readonly NestQuality[] }) {
  const { rows } = props;
  return (
    <>
      <SizesChart
        label="Share of the exact top 10 among the best 50 at each size"
        yLabel="kept of the top 10"
        series={WAYS.map(([name, field]) => ({ name, points: rows.map((row) => [row.dim, row[field]] as const) }))}
      />
      <Table
        caption="Share of the exact top 10 that is among the best 50 at the size"
        rows={rows}
        id={(row) => String(row.dim)}
        columns={[
          { title: "Size", isNumber: true, by: (row) => row.dim, cell: (row) => row.dim },
          ...WAYS.map(([name, field]) => ({
            title: name,
            isNumber: true,
            by: (row: NestQuality) => row[field],
            cell: (row: NestQuality) => share(row[field]),
          })),
        ]}
      />
    </>
  );
}
