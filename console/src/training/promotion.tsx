// One promotion: what the gate says, how far it is, and the ways on and back.

import { type Promotion, PromotionState } from "../../gen/trainer_pb";
import { useDoing, useLoad } from "../load";
import { Alert, Await, Bar } from "../notices";
import { to } from "../place";
import { trainer } from "../services";
import { Sure } from "../sure";
import { time } from "../words";
import { Comparison } from "./comparison";
import { Stand } from "./promotions";
import { VersionLink } from "./versions";

const LOOK_S = 1;

/** What is done in each state in which something is done. */
const DOING: Partial<Record<PromotionState, string>> = {
  [PromotionState.CHECKING]: "The gate judges",
  [PromotionState.LOADING]: "The encoder loads it",
  [PromotionState.MIGRATING]: "Collections are filled",
  [PromotionState.SWITCHING]: "Switching",
  [PromotionState.ROLLING_BACK]: "Rolling back",
};

const MEANING: Partial<Record<PromotionState, string>> = {
  [PromotionState.READY]: "All is ready, and what was served before is. It switches when you say so.",
  [PromotionState.WATCHING]:
    "It is served. What was served before is kept current, so that you can go back without losing a write.",
  [PromotionState.DONE]: "It is served.",
  [PromotionState.REFUSED]: "The gate refused it, and nothing was touched.",
  [PromotionState.ROLLED_BACK]: "What was served before is served.",
  [PromotionState.FAILED]: "It was given up; what was served before is served.",
};

const BEFORE_SWITCH = new Set([
  PromotionState.CHECKING,
  PromotionState.LOADING,
  PromotionState.MIGRATING,
  PromotionState.READY,
]);

export function PromotionView(props: { id: string }) {
  const { id } = props;
  const promotion = useLoad((signal) => trainer.getPromotion({ id }, { signal }), [id], LOOK_S);
  return (
    <>
      <p>
        <a href={to("training")}>All jobs, versions and promotions</a>
      </p>
      <Await of={promotion}>
        {({ promotion: found }) => found && <Found promotion={found} onChanged={promotion.reload} />}
      </Await>
    </>
  );
}

function Found(props: { promotion: Promotion; onChanged: () => void }) {
  const { promotion } = props;
  const doing = DOING[promotion.state];
  const isMigrating = promotion.state === PromotionState.MIGRATING;
  return (
    <>
      <Summary promotion={promotion} />
      {doing && (
        <Bar
          step={promotion.step || doing}
          done={isMigrating ? Number(promotion.done) : 0}
          total={isMigrating ? Number(promotion.total) : 0}
        />
      )}
      <p>{MEANING[promotion.state]}</p>
      {promotion.error && (
        <div class="alert" role="alert">
          <p>
            {doing && "It waits: "}
            {promotion.error}
          </p>
        </div>
      )}
      {promotion.reasons.length > 0 && (
        <div class="alert">
          <ul>
            {promotion.reasons.map((reason) => (
              <li key={reason}>{reason}</li>
            ))}
          </ul>
        </div>
      )}
      <Actions promotion={promotion} onChanged={props.onChanged} />
      {promotion.judged.length > 0 && <Comparison caption="What the gate looked at" slices={promotion.judged} />}
    </>
  );
}

function Summary(props: { promotion: Promotion }) {
  const { promotion } = props;
  return (
    <section class="card" aria-label="The promotion">
      <h2>Promotion {promotion.id}</h2>
      <dl>
        <dt>State</dt>
        <dd>
          <span role="status">
            <Stand state={promotion.state} />
          </span>
        </dd>
        <dt>Version</dt>
        <dd>
          <VersionLink id={promotion.version} />
        </dd>
        <dt>Collections</dt>
        <dd>{promotion.collections.join(", ") || "none"}</dd>
        <dt>Encoder's name</dt>
        <dd>
          {promotion.encoderAlias || "none"}
          {promotion.previous && `, before: ${promotion.previous}`}
        </dd>
        <dt>Begun</dt>
        <dd>{time(promotion.createdAt)}</dd>
        <dt>Changed</dt>
        <dd>{time(promotion.updatedAt)}</dd>
      </dl>
    </section>
  );
}

type Way = "cutOverPromotion" | "rollBackPromotion" | "finishPromotion";

function Actions(props: { promotion: Promotion; onChanged: () => void }) {
  const { id, state } = props.promotion;
  const act = useDoing(async (signal, way: Way) => {
    await trainer[way]({ id }, { signal });
    props.onChanged();
  });
  const isWatched = state === PromotionState.WATCHING;
  return (
    <>
      <Alert problem={act.problem} />
      <div class="row">
        {state === PromotionState.READY && (
          <button disabled={act.isRunning} onClick={() => act.run("cutOverPromotion")}>
            Cut over
          </button>
        )}
        {isWatched && (
          <Sure
            label="Finish"
            question="Finish it? There is no way back then."
            isRunning={act.isRunning}
            onSure={() => act.run("finishPromotion")}
          />
        )}
        {(isWatched || BEFORE_SWITCH.has(state)) && (
          <Sure
            label="Roll back"
            question={isWatched ? "Go back to what was served before?" : "Give it up, and delete what was filled?"}
            isRunning={act.isRunning}
            onSure={() => act.run("rollBackPromotion")}
          />
        )}
      </div>
    </>
  );
}
