// The form that measures a collection, and how far it is.

import { useState } from "preact/hooks";

import { type Calibration, Objective } from "../gen/router_pb";

import { useDoing } from "./load";
import { Alert, Bar } from "./notices";
import { router } from "./services";
import { share } from "./words";

interface Step {
  step: string;
  done: number;
  total: number;
}

const BEGIN: Step = { step: "Beginning", done: 0, total: 0 };

export function CalibrateForm(props: { collection: string; last?: Calibration; onDone: () => void }) {
  const { collection, last } = props;
  const [target, setTarget] = useState(last?.recallTarget ?? 0.95);
  const [limit, setLimit] = useState(last?.limit ?? 10);
  const [objective, setObjective] = useState(last?.objective ?? Objective.LATENCY);
  const [step, setStep] = useState(BEGIN);
  const [end, setEnd] = useState("");
  const calibrate = useDoing(async (signal) => {
    setStep(BEGIN);
    setEnd("");
    const asked = { collection, limit, recallTarget: target, objective };
    for await (const answer of router.calibrate(asked, { signal })) {
      if (answer.calibration) {
        setEnd(`Measured: ${answer.calibration.plans.length} plans. Searches choose among them from now on.`);
        props.onDone();
      } else {
        setStep({ step: answer.step, done: Number(answer.done), total: Number(answer.total) });
      }
    }
  });
  const submit = (event: Event): void => {
    event.preventDefault();
    calibrate.run();
  };
  const stop = (): void => {
    calibrate.stop();
    setEnd("Stopped. What was measured before, if anything was, still counts.");
  };
  return (
    <form onSubmit={submit}>
      <fieldset class="row" disabled={calibrate.isRunning}>
        <label>
          Recall target: {share(target)}
          <input
            type="range"
            min="0.8"
            max="0.995"
            step="0.005"
            value={target}
            onInput={(event) => setTarget(event.currentTarget.valueAsNumber)}
          />
        </label>
        <label>
          Hits of a search, at most
          <input
            type="number"
            min="1"
            max="1000"
            required
            value={limit}
            onInput={(event) => setLimit(event.currentTarget.valueAsNumber)}
          />
        </label>
        <label>
          Cheapest in
          <select
            value={objective}
            onChange={(event) => setObjective(Number(event.currentTarget.value))}
          >
            <option value={Objective.LATENCY}>latency</option>
            <option value={Objective.MEMORY}>memory</option>
          </select>
        </label>
        <button type="submit">Calibrate</button>
      </fieldset>
      {calibrate.isRunning && (
        <div class="row">
          <Bar {...step} />
          <button type="button" class="quiet" onClick={stop}>
            Stop
          </button>
        </div>
      )}
      <Alert problem={calibrate.problem} onRetry={calibrate.run} />
      {end && !calibrate.isRunning && <p role="status">{end}</p>}
    </form>
  );
}
