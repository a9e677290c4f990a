// What a recall target costs: the measured plans of a collection, and the one that a target gets.

import { Code } from "@connectrpc/connect";
import { useState } from "preact/hooks";

import { type Calibration, type Collection, type MeasuredPlan, QuerySource } from "../../gen/router_pb";
import { CalibrateForm } from "../calibrate";
import { choose, type Choice, type Cost, costOf, measuredOn, promised } from "../calibration";
import { OfCollection } from "../collection";
import { Curves } from "../curves";
import { Front } from "../front";
import { useLoad } from "../load";
import { Await, Empty, Snippet } from "../notices";
import { planWords } from "../plan";
import { router } from "../services";
import { snippets } from "../snippets";
import { Table } from "../table";
import { bytes, count, ms, share, time } from "../words";

export function PlanPage(props: { settings: URLSearchParams }) {
  return (
    <OfCollection settings={props.settings}>
      {(collection) => <Plans key={collection.name} collection={collection} />}
    </OfCollection>
  );
}

function Plans(props: { collection: Collection }) {
  const { name } = props.collection;
  const answer = useLoad((signal) => router.getCalibration({ collection: name }, { signal }), []);
  if (answer.problem?.code === Code.NotFound) {
    return (
      <>
        <Empty title="This collection is not calibrated yet">
          <p>
            A calibration measures which plans keep which recall on it; then a search may say the recall that it wants.
            It takes a minute or two, and searches go on meanwhile. Queries like those that will come serve best:
          </p>
          <pre tabIndex={0}>{`matryoshka calibrate ${name} --queries my-queries.txt`}</pre>
          <p>Without them, recent searches are taken, or documents in their place:</p>
        </Empty>
        <CalibrateForm collection={name} onDone={answer.reload} />
      </>
    );
  }
  return (
    <Await of={answer}>
      {({ calibration }) =>
        calibration && (
          <>
            <Measured key={calibration.createdAt} collection={props.collection} calibration={calibration} />
            <h2>Calibrate anew</h2>
            <CalibrateForm collection={name} last={calibration} onDone={answer.reload} />
          </>
        )
      }
    </Await>
  );
}

function Measured(props: { collection: Collection; calibration: Calibration }) {
  const { collection, calibration } = props;
  const [slice, setSlice] = useState("");
  const [cost, setCost] = useState<Cost>(costOf(calibration));
  const [target, setTarget] = useState(calibration.recallTarget);
  const choice = choose(calibration, target, slice, cost);
  const request = {
    collection: collection.name,
    query: { case: "text" as const, value: "your question" },
    limit: calibration.limit,
    recallTarget: target,
    slice,
  };
  return (
    <>
      <Conditions calibration={calibration} />
      <div class="row">
        <label>
          Cheapest in
          <select value={cost} onChange={(event) => setCost(event.currentTarget.value === "memory" ? "memory" : "latency")}>
            <option value="latency">latency</option>
            <option value="memory">memory</option>
          </select>
        </label>
        <label>
          Queries
          <select value={slice} onChange={(event) => setSlice(event.currentTarget.value)}>
            <option value="">all</option>
            {Object.keys(calibration.sliceQueries)
              .filter((one) => one)
              .sort()
              .map((one) => (
                <option key={one} value={one}>
                  {one}
                </option>
              ))}
          </select>
        </label>
      </div>
      <Front
        calibration={calibration}
        slice={slice}
        cost={cost}
        target={target}
        choice={choice}
        onTarget={setTarget}
      />
      <p class="soft">
        Filled: the cheapest of their recall, joined by a line. Each mark stands at what a plan is sure of, and a line
        leads to its mean. The ring is the plan of searches that state no target. Drag the dashed line, or move it by
        arrow keys.
      </p>
      {choice && <Got calibration={calibration} choice={choice} slice={slice} cost={cost} target={target} />}
      {snippets(request).map(({ title, text }) => (
        <Snippet key={title} title={title} text={text} />
      ))}
      <Figures calibration={calibration} slice={slice} cost={cost} choice={choice} />
      {calibration.curves.length > 0 && <Curves calibration={calibration} />}
    </>
  );
}

function Conditions(props: { calibration: Calibration }) {
  const { calibration } = props;
  return (
    <>
      <p>
        Measured {time(calibration.createdAt)} with {measuredOn(calibration)} on {count(calibration.numPoints)} points,
        for up to {calibration.limit} hits of a search. What is sure holds in {Math.round(calibration.confidence * 100)}{" "}
        of 100 calibrations, in the mean over queries like these.
      </p>
      {calibration.source === QuerySource.DOCUMENTS && (
        <p>
          <strong>Note:</strong> documents stood in for queries: real ones may be harder. Calibrate again with queries, or once there were
          enough searches.
        </p>
      )}
    </>
  );
}

/** The plan that the target gets. */
function Got(props: { calibration: Calibration; choice: Choice; slice: string; cost: Cost; target: number }) {
  const { calibration, choice, slice, cost, target } = props;
  const { plan } = choice;
  return (
    <section class="card" aria-label="The plan of this target">
      <dl>
        <dt>Target</dt>
        <dd>{share(target)}</dd>
        <dt>Plan</dt>
        <dd>
          <strong>{planWords(plan.plan)}</strong>
        </dd>
        <dt>Sure of</dt>
        <dd>{share(choice.recall)}</dd>
        <dt>Time</dt>
        <dd>
          {ms(plan.p50Ms)} in the median, {ms(plan.p99Ms)} in 99 of 100
        </dd>
        <dt>Memory</dt>
        <dd>
          {bytes(plan.memoryBytes)} for each point, {bytes(BigInt(plan.memoryBytes) * calibration.numPoints)} for all
        </dd>
      </dl>
      {slice !== choice.slice && (
        <p>
          Of this slice there were {count(calibration.sliceQueries[slice] ?? 0)} queries, too few to be sure of such a
          target: it gets the plan of all queries.
        </p>
      )}
      {cost !== costOf(calibration) && (
        <p>
          Searches get the plan that is cheapest in {costOf(calibration)}, as it was calibrated for. Calibrate anew for{" "}
          {cost} to have this one.
        </p>
      )}
    </section>
  );
}

function Figures(props: { calibration: Calibration; slice: string; cost: Cost; choice: Choice | undefined }) {
  const { calibration, slice, cost, choice } = props;
  const { plans } = calibration;
  const chosen = calibration.sliceChosen[slice] ?? calibration.chosen;
  const sure = (plan: MeasuredPlan): number | undefined => promised(plan.recalls[slice], cost);
  return (
    <Table
      caption={slice ? `Plans, with the queries of ${slice}` : "Plans, with all queries"}
      rows={plans}
      id={(plan) => String(plans.indexOf(plan))}
      columns={[
        {
          title: "Plan",
          cell: (plan) => (
            <span class="steady">
              {plan === choice?.plan ? <strong>{planWords(plan.plan)}</strong> : planWords(plan.plan)}
              {plans.indexOf(plan) === chosen && <span class="soft"> (without a target)</span>}
            </span>
          ),
        },
        { title: "Median", isNumber: true, cell: (plan) => ms(plan.p50Ms), by: (plan) => plan.p50Ms },
        { title: "99 of 100", isNumber: true, cell: (plan) => ms(plan.p99Ms), by: (plan) => plan.p99Ms },
        {
          title: "Memory for each point",
          isNumber: true,
          cell: (plan) => bytes(plan.memoryBytes),
          by: (plan) => plan.memoryBytes,
        },
        {
          title: "Mean recall",
          isNumber: true,
          cell: (plan) => share(plan.recalls[slice]?.mean ?? 0),
          by: (plan) => plan.recalls[slice]?.mean ?? 0,
        },
        {
          title: "Bound by itself",
          isNumber: true,
          cell: (plan) => share(plan.recalls[slice]?.bound ?? 0),
          by: (plan) => plan.recalls[slice]?.bound ?? 0,
        },
        {
          title: "Sure of, as a cheapest",
          isNumber: true,
          cell: (plan) => {
            const recall = sure(plan);
            return recall === undefined ? "" : share(recall);
          },
          by: (plan) => sure(plan) ?? -1,
        },
      ]}
    />
  );
}
