// A slice's recall over time: its mean, and a band between the bounds.

import { scaleLinear } from "d3-scale";
import { area as band, line } from "d3-shape";

import type { RecallAt, SliceRecall } from "../gen/router_pb";

import { Chart } from "./chart";
import { sliceName } from "./slices";
import { Table } from "./table";
import { count, share, time } from "./words";

const HOUR = 60;
const SHORTEST = 5;
// Longer than this is told in hours.
const LONG = 3 * HOUR;

export function History(props: { slice: SliceRecall }) {
  const { slice } = props;
  const { history } = slice;
  const last = history.at(-1);
  if (!last) return <p class="soft">Nothing was measured of this slice yet.</p>;
  const now = Date.now() / 1000;
  const minutes = (point: RecallAt): number => Math.min(0, (Number(point.at) - now) / 60);
  const longest = Math.max(SHORTEST, ...history.map((point) => -minutes(point)));
  const unit = longest > LONG ? HOUR : 1;
  const ago = (point: RecallAt): number => minutes(point) / unit;
  const least = Math.min(slice.recallTarget ?? 1, ...history.map((point) => point.lower));
  const x = scaleLinear([-longest / unit, 0], [0, 1]);
  const y = scaleLinear([Math.max(0, Math.floor(least * 20) / 20), 1], [0, 1]);
  return (
    <>
      <Chart
        label={`Recall of the slice ${sliceName(slice.slice)} over time; the table below has the figures`}
        x={x}
        y={y}
        xLabel={unit === 1 ? "Minutes ago" : "Hours ago"}
        yLabel="Recall"
        xFormat={(value) => String(Math.abs(value))}
      >
        {(area) => {
          const between = band<RecallAt>(
            (point) => area.x(ago(point)),
            (point) => area.y(point.lower),
            (point) => area.y(point.upper),
          );
          const mean = line<RecallAt>(
            (point) => area.x(ago(point)),
            (point) => area.y(point.mean),
          );
          const at = area.x(ago(last));
          return (
            <>
              <path class="band" d={between(history) ?? ""} />
              <path class="line seen" d={mean(history) ?? ""} />
              <line class="seen" x1={at} x2={at} y1={area.y(last.lower)} y2={area.y(last.upper)} />
              <circle class="now" cx={at} cy={area.y(last.mean)} r="4" />
              {slice.recallTarget !== undefined && (
                <line
                  class="wanted"
                  x1={area.left}
                  x2={area.right}
                  y1={area.y(slice.recallTarget)}
                  y2={area.y(slice.recallTarget)}
                />
              )}
            </>
          );
        }}
      </Chart>
      <p class="soft">
        The mean over the last 1,000 measured searches, between its bounds at 95 %
        {slice.recallTarget !== undefined && `; dashed: the target of ${share(slice.recallTarget)}`}.
      </p>
      <details>
        <summary>As a table</summary>
        <Table
          caption={`Recall of the slice ${sliceName(slice.slice)} over time, newest first`}
          rows={[...history].reverse()}
          id={(point) => String(point.at)}
          columns={[
            { title: "Time", cell: (point) => time(point.at) },
            { title: "Measured", isNumber: true, cell: (point) => count(point.numMeasured) },
            { title: "Mean", isNumber: true, cell: (point) => share(point.mean) },
            { title: "At 95 %", isNumber: true, cell: (point) => `${share(point.lower)} to ${share(point.upper)}` },
          ]}
        />
      </details>
    </>
  );
}
