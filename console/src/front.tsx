// The measured plans, recall against cost, and a target that is moved by hand or by arrow keys.

import { scaleLinear } from "d3-scale";
import { curveStepAfter, line } from "d3-shape";

import type { Calibration, MeasuredPlan } from "../gen/router_pb";

import { type Choice, type Cost, price, promised } from "./calibration";
import { type Area, Chart } from "./chart";
import { planWords } from "./plan";
import { bytes, ms, share } from "./words";

const STEP = 0.005;
const LEAP = 0.02;
// A hand is less exact than a key.
const DIGITS = 1000;

/** What a plan is sure of; of one that is not among the cheapest, its bound by itself. */
function surety(plan: MeasuredPlan, slice: string, cost: Cost): number {
  const recall = plan.recalls[slice];
  return promised(recall, cost) ?? recall?.bound ?? 0;
}

function priceWords(value: number, cost: Cost): string {
  return cost === "memory" ? bytes(value) : ms(value);
}

export function Front(props: {
  calibration: Calibration;
  slice: string;
  cost: Cost;
  target: number;
  choice: Choice | undefined;
  onTarget: (target: number) => void;
}) {
  const { calibration, slice, cost, target } = props;
  const { plans } = calibration;
  const least = Math.min(target, ...plans.map((plan) => surety(plan, slice, cost)));
  const low = Math.max(0, Math.floor(least * 20 - 0.2) / 20);
  const x = scaleLinear([0, Math.max(...plans.map((plan) => price(plan, cost)))], [0, 1]).nice();
  const y = scaleLinear([low, 1], [0, 1]);
  return (
    <Chart
      label={`Recall of ${plans.length} plans against their ${cost}; the table below has the figures`}
      hasControls
      x={x}
      y={y}
      xLabel={cost === "memory" ? "Memory for each point" : "Median time in the engine"}
      yLabel="Recall that is sure"
      xFormat={(value) => priceWords(value, cost)}
      height={360}
    >
      {(area) => (
        <>
          <Cheapest {...props} area={area} />
          {plans.map((plan, at) => (
            <Mark key={at} {...props} plan={plan} area={area} />
          ))}
          <Target area={area} target={target} low={low} choice={props.choice} onTarget={props.onTarget} />
        </>
      )}
    </Chart>
  );
}

/** The line along the plans that a target may get. */
function Cheapest(props: { calibration: Calibration; slice: string; cost: Cost; area: Area }) {
  const { calibration, slice, cost, area } = props;
  const rising: [number, number][] = [];
  const sure = calibration.plans.flatMap((plan) => {
    const recall = promised(plan.recalls[slice], cost);
    return recall === undefined ? [] : [[price(plan, cost), recall] as [number, number]];
  });
  for (const [paid, recall] of sure.sort((one, two) => one[0] - two[0])) {
    if (recall > (rising.at(-1)?.[1] ?? 0)) rising.push([paid, recall]);
  }
  const path = line(
    ([paid]) => area.x(paid),
    ([, recall]) => area.y(recall),
  ).curve(curveStepAfter);
  return <path class="line front" d={path(rising) ?? ""} />;
}

function Mark(props: {
  calibration: Calibration;
  slice: string;
  cost: Cost;
  choice: Choice | undefined;
  plan: MeasuredPlan;
  area: Area;
}) {
  const { calibration, slice, cost, choice, plan, area } = props;
  const recall = plan.recalls[slice];
  const sure = surety(plan, slice, cost);
  const at = { x: area.x(price(plan, cost)), y: area.y(sure) };
  const isCheap = promised(recall, cost) !== undefined;
  const isChosen = calibration.plans.indexOf(plan) === (calibration.sliceChosen[slice] ?? calibration.chosen);
  const isGot = choice?.plan === plan;
  return (
    <g class="plan">
      <title>
        {`${planWords(plan.plan)}: ${priceWords(price(plan, cost), cost)}, sure of ${share(sure)}, mean ${share(recall?.mean ?? 0)}`}
      </title>
      <line class="mean" x1={at.x} x2={at.x} y1={at.y} y2={area.y(recall?.mean ?? sure)} />
      <circle class={isCheap ? "cheap" : "dear"} cx={at.x} cy={at.y} r={isGot ? 7 : 4} />
      {isChosen && <circle class="chosen" cx={at.x} cy={at.y} r="11" />}
    </g>
  );
}

function Target(props: {
  area: Area;
  target: number;
  low: number;
  choice: Choice | undefined;
  onTarget: (target: number) => void;
}) {
  const { area, target, low, choice } = props;
  const move = (wanted: number): void => {
    const within = Math.min(1, Math.max(low, wanted));
    props.onTarget(Math.round(within * DIGITS) / DIGITS);
  };
  const drag = (event: PointerEvent): void => {
    const picture = event.currentTarget instanceof SVGElement && event.currentTarget.ownerSVGElement;
    if (!picture || !event.buttons) return;
    move(area.y.invert(event.clientY - picture.getBoundingClientRect().top));
  };
  const press = (event: KeyboardEvent): void => {
    const moves: Record<string, number> = {
      ArrowUp: target + STEP,
      ArrowRight: target + STEP,
      ArrowDown: target - STEP,
      ArrowLeft: target - STEP,
      PageUp: target + LEAP,
      PageDown: target - LEAP,
      Home: low,
      End: 1,
    };
    const wanted = moves[event.key];
    if (wanted === undefined) return;
    event.preventDefault();
    move(wanted);
  };
  const at = area.y(target);
  // Above the line, unless it is at the top.
  const label = at < area.top + 24 ? at + 18 : at - 8;
  return (
    <g
      class="target"
      role="slider"
      tabindex={0}
      aria-label="Recall target"
      aria-orientation="vertical"
      aria-valuemin={low}
      aria-valuemax={1}
      aria-valuenow={target}
      aria-valuetext={`${share(target)}${choice ? `: ${planWords(choice.plan.plan)}, ${ms(choice.plan.p50Ms)}` : ""}`}
      onKeyDown={press}
      onPointerDown={(event) => {
        event.currentTarget.setPointerCapture(event.pointerId);
        drag(event);
      }}
      onPointerMove={drag}
    >
      <rect class="grip" x={area.left} width={area.right - area.left} y={at - 16} height="32" />
      <line class="line" x1={area.left} x2={area.right} y1={at} y2={at} />
      <circle class="handle" cx={area.right - 8} cy={at} r="8" />
      <text class="label" x={area.right - 24} y={label} text-anchor="end">
        target {share(target)}
      </text>
    </g>
  );
}
