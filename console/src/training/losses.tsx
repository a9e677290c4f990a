// The loss of each size over the steps.

import { extent } from "d3-array";
import { scaleLinear } from "d3-scale";

import type { Event } from "../../gen/trainer_pb";
import { Chart } from "../chart";
import { Legend, Lines, type Series } from "../lines";

/** Return the losses by size. A job that went on from a checkpoint tells of some steps again: the later counts. */
function series(events: readonly Event[]): Series[] {
  const steps = new Map<number, Event>();
  for (const event of events) {
    if (event.phase === "train" && Object.keys(event.loss).length) steps.set(event.step, event);
  }
  const told = [...steps.values()].sort((one, other) => one.step - other.step);
  const dims = new Set(told.flatMap((event) => Object.keys(event.loss).map(Number)));
  return [...dims]
    .sort((one, other) => one - other)
    .map((dim) => ({
      name: `${dim}`,
      points: told.flatMap((event) => {
        const loss = event.loss[dim];
        return loss === undefined ? [] : [[event.step, loss] as const];
      }),
    }));
}

export function Losses(props: { events: readonly Event[]; totalSteps: number }) {
  const lines = series(props.events);
  if (!lines.length) return null;
  const [low = 0, high = 1] = extent(lines.flatMap(({ points }) => points.map(([, loss]) => loss)));
  const x = scaleLinear().domain([0, Math.max(1, props.totalSteps)]);
  const y = scaleLinear().domain(low < high ? [low, high] : [low - 0.1, high + 0.1]).nice();
  return (
    <section>
      <h2>Loss of each size</h2>
      <Chart label="The loss of each size over the steps" x={x} y={y} xLabel="step" yLabel="loss">
        {(area) => <Lines area={area} series={lines} />}
      </Chart>
      <Legend series={lines} format={(loss) => loss.toPrecision(3)} />
    </section>
  );
}
