// Lines in a chart, each with a colour of its own, and the legend that names them.

import { line } from "d3-shape";

import type { Area } from "./chart";

export interface Series {
  name: string;
  /** x and y, ascending in x. */
  points: readonly (readonly [number, number])[];
}

const COLOURS = 6;
// More points than a screen has columns only make it slow.
const MAX_POINTS = 800;
// More dots than this are a blot.
const MAX_DOTS = 20;

/** There are more series than colours: those of the second round are dashed. */
function look(at: number): string {
  return `series-${(at % COLOURS) + 1}${at >= COLOURS ? " dashed" : ""}`;
}

/** Keep every so many points, and the last one. */
function thin(points: Series["points"]): Series["points"] {
  const every = Math.ceil(points.length / MAX_POINTS);
  return points.filter((_, at) => at % every === 0 || at === points.length - 1);
}

export function Lines(props: { area: Area; series: readonly Series[] }) {
  const { x, y } = props.area;
  const path = line<readonly [number, number]>()
    .x(([at]) => x(at))
    .y(([, value]) => y(value));
  return (
    <>
      {props.series.map(({ name, points }, at) => (
        <g key={name} class={look(at)}>
          <path class="line" d={path(thin(points)) ?? ""} />
          {points.length <= MAX_DOTS &&
            points.map(([place, value]) => <circle key={place} class="dot" cx={x(place)} cy={y(value)} r="3" />)}
        </g>
      ))}
    </>
  );
}

/** Names of the lines; with their last values, if `format` says how. */
export function Legend(props: { series: readonly Series[]; format?: (value: number) => string }) {
  const { format } = props;
  return (
    <ul class="legend">
      {props.series.map(({ name, points }, at) => {
        const last = points.at(-1);
        return (
          <li key={name}>
            <svg class={look(at)} width="24" height="8" aria-hidden="true">
              <path class="line" d="M0 4H24" />
            </svg>
            {name} {format && last && <strong>{format(last[1])}</strong>}
          </li>
        );
      })}
    </ul>
  );
}
