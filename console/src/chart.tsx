// A frame with two axes for what is drawn in it. The marks are the pages' own.

import type { ScaleContinuousNumeric } from "d3-scale";
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

export type Scale = ScaleContinuousNumeric<number, number>;

const LEFT = 56;
// Half of the last tick's label reaches over it.
const RIGHT = 28;
const TOP = 12;
const BOTTOM = 44;
const APART = 32;

export interface Area {
  x: Scale;
  y: Scale;
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** Return the width of an element as the window changes. */
function useWidth(least: number) {
  const element = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(640);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => {
      if (entry) setWidth(Math.max(least, entry.contentRect.width));
    });
    if (element.current) observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return { element, width };
}

/** Leave out ticks whose words would touch. */
function apart(ticks: readonly number[], x: Scale): number[] {
  const kept: number[] = [];
  for (const tick of ticks) {
    const last = kept.at(-1);
    if (last === undefined || x(tick) - x(last) >= APART) kept.push(tick);
  }
  return kept;
}

/**
 * Draw axes, and what `children` give of the area between them.
 *
 * @param label what the picture shows, for those who do not see it; its figures stand in a table.
 * @param hasControls something in it can be moved; else it is one picture.
 * @param x, y scales whose ranges are set here.
 */
export function Chart(props: {
  label: string;
  x: Scale;
  y: Scale;
  xLabel: string;
  yLabel: string;
  /** What to mark, ascending; absent: round numbers. */
  xTicks?: readonly number[];
  xFormat?: (value: number) => string;
  yFormat?: (value: number) => string;
  height?: number;
  hasControls?: boolean;
  children: (area: Area) => ComponentChildren;
}) {
  const { element, width } = useWidth(280);
  const height = props.height ?? 300;
  const area: Area = {
    x: props.x.copy().range([LEFT, width - RIGHT]),
    y: props.y.copy().range([height - BOTTOM, TOP]),
    left: LEFT,
    right: width - RIGHT,
    top: TOP,
    bottom: height - BOTTOM,
  };
  const xTicks = props.xTicks ? apart(props.xTicks, area.x) : area.x.ticks(Math.max(2, Math.floor(width / 110)));
  const yTicks = area.y.ticks(5);
  const xFormat = props.xFormat ?? area.x.tickFormat(xTicks.length);
  const yFormat = props.yFormat ?? area.y.tickFormat(yTicks.length);
  return (
    <div class="chart" ref={element}>
      <svg width={width} height={height} role={props.hasControls ? "group" : "img"} aria-label={props.label}>
        {yTicks.map((tick) => (
          <g key={tick}>
            <line class="grid" x1={area.left} x2={area.right} y1={area.y(tick)} y2={area.y(tick)} />
            <text class="tick" x={area.left - 8} y={area.y(tick)} dy="0.32em" text-anchor="end">
              {yFormat(tick)}
            </text>
          </g>
        ))}
        {xTicks.map((tick) => (
          <text key={tick} class="tick" x={area.x(tick)} y={area.bottom + 18} text-anchor="middle">
            {xFormat(tick)}
          </text>
        ))}
        <line class="axis" x1={area.left} x2={area.right} y1={area.bottom} y2={area.bottom} />
        <text class="label" x={(area.left + area.right) / 2} y={height - 6} text-anchor="middle">
          {props.xLabel}
        </text>
        <text class="label" transform={`translate(14 ${(area.top + area.bottom) / 2}) rotate(-90)`} text-anchor="middle">
          {props.yLabel}
        </text>
        {props.children(area)}
      </svg>
    </div>
  );
}
