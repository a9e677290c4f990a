// One job: how far it is, how it learns, what came of it.

import { Fragment } from "preact";

import { type Event, type Job, JobStatus, Method, type Mining } from "../../gen/trainer_pb";
import { type Loaded, useDoing, useLoad } from "../load";
import { Alert, Await, Bar } from "../notices";
import { to } from "../place";
import { trainer } from "../services";
import { Sure } from "../sure";
import { Table } from "../table";
import { bytes, count, duration, time } from "../words";
import { Data } from "./data";
import { State } from "./jobs";
import { Losses } from "./losses";
import { methodName } from "./methods";
import { NestedQuality, Quality } from "./quality";
import { useEvents } from "./watch";

const ENDED = new Set([JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED]);
const LOOK_S = 10;

/** What to do about each way to fail. */
const NEXT: Partial<Record<string, string>> = {
  invalid_data: "Mend the file and start a job from it again.",
  training_failed: "Start another job with a smaller learning rate, or look at the data.",
  disk_full: "Make room where the trainer keeps its jobs, and start it again.",
  out_of_memory: "Start another job with a smaller batch, or give the trainer more memory.",
  killed: "See the trainer's log, and its memory limit, for what ended the process.",
  not_started: "See the trainer's log for why no process could be started.",
  internal_error: "See the trainer's log.",
};

export function JobView(props: { id: string }) {
  const { id } = props;
  const { events, problem, isOver } = useEvents(id);
  const status = events.at(-1)?.status;
  // The results are there when the stream ends, a little after the last event.
  const job = useLoad((signal) => trainer.getJob({ id }, { signal }), [id, status, isOver], isOver ? 0 : LOOK_S);
  return (
    <>
      <p>
        <a href={to("training")}>All jobs</a>
      </p>
      {!job.problem && <Alert problem={problem} />}
      <Await of={job}>
        {({ job: found }) => found && <Found job={found} events={events} onChanged={job.reload} />}
      </Await>
      {events.length > 0 && <Events events={events} />}
    </>
  );
}

function Found(props: { job: Job; events: readonly Event[]; onChanged: () => void }) {
  const { job, events } = props;
  const checkpoints = useLoad(
    (signal) => trainer.listCheckpoints({ id: job.id }, { signal }),
    [job.id, job.status],
    ENDED.has(job.status) ? 0 : LOOK_S,
  );
  return (
    <>
      <Summary job={job} />
      {job.error && (
        <div class="alert" role="alert">
          <p>
            {job.error} {job.errorCode && <code>{job.errorCode}</code>}
          </p>
          <p>{NEXT[job.errorCode]}</p>
        </div>
      )}
      <Progress job={job} events={events} />
      <Actions job={job} onChanged={props.onChanged} />
      <Losses events={events} totalSteps={job.hyperparameters?.steps ?? 0} />
      <Results job={job} />
      {job.data && <Data report={job.data} />}
      <Checkpoints of={checkpoints} />
    </>
  );
}

function Summary(props: { job: Job }) {
  const { job } = props;
  const settings = job.hyperparameters;
  const isVersion = job.status === JobStatus.SUCCEEDED && job.quality.length > 0;
  const facts: [name: string, value: string | undefined][] = [
    ["Sizes", settings?.matryoshkaDims.join(", ")],
    ["Batch size", settings && count(settings.batchSize)],
    ["Learning rate", settings && String(settings.learningRate)],
    ["Columns", Object.entries(job.columns).map((one) => one.join(" = ")).sort().join(", ")],
    ["Negatives mined", job.mineNegatives && mined(job.mineNegatives)],
    ["Created", time(job.createdAt)],
    ["Started", time(job.startedAt)],
    ["Finished", time(job.finishedAt)],
  ];
  return (
    <section class="card" aria-label="The job">
      <h2>{job.modelId || job.id}</h2>
      <dl>
        <dt>State</dt>
        <dd>
          <State status={job.status} />
          {isVersion && (
            <>
              {": "}
              <a href={to("training", { version: job.modelId })}>compare it, and promote it</a>
            </>
          )}
        </dd>
        <dt>Job</dt>
        <dd>
          <code>{job.id}</code>
        </dd>
        <dt>Method</dt>
        <dd>{methodName(settings?.method)}</dd>
        {settings?.method !== Method.NEST && (
          <>
            <dt>Base model</dt>
            <dd>{job.baseModel}</dd>
          </>
        )}
        {facts.map(
          ([name, value]) =>
            value && (
              <Fragment key={name}>
                <dt>{name}</dt>
                <dd>{value}</dd>
              </Fragment>
            ),
        )}
      </dl>
    </section>
  );
}

function mined({ negatives, collection }: Mining): string {
  return `up to ${negatives} for each pair${collection && `, also from the collection ${collection}`}`;
}

function Progress(props: { job: Job; events: readonly Event[] }) {
  const { job } = props;
  const last = props.events.at(-1);
  if (!last || ENDED.has(job.status)) return null;
  if (job.status === JobStatus.PAUSED) {
    return <Bar step="paused" done={job.step} total={job.hyperparameters?.steps ?? 0} />;
  }
  const left = last.secondsLeft ? `, about ${duration(last.secondsLeft)} left` : "";
  return <Bar step={`${last.message}${left}`} done={last.step} total={last.totalSteps} />;
}

function Actions(props: { job: Job; onChanged: () => void }) {
  const { id, status } = props.job;
  const act = useDoing(async (signal, way: "pauseJob" | "resumeJob" | "cancelJob") => {
    await trainer[way]({ id }, { signal });
    props.onChanged();
  });
  if (ENDED.has(status)) return null;
  return (
    <>
      <Alert problem={act.problem} />
      <div class="row">
        {status === JobStatus.PAUSED ? (
          <button disabled={act.isRunning} onClick={() => act.run("resumeJob")}>
            Resume
          </button>
        ) : (
          <button class="quiet" disabled={act.isRunning} onClick={() => act.run("pauseJob")}>
            Pause
          </button>
        )}
        <Sure
          label="Cancel the job"
          question="Cancel it? It cannot be resumed then."
          isRunning={act.isRunning}
          onSure={() => act.run("cancelJob")}
        />
      </div>
    </>
  );
}

function Results(props: { job: Job }) {
  const { quality, nestQuality } = props.job;
  if (!quality.length && !nestQuality.length) return null;
  return (
    <section>
      <h2>Quality of each size</h2>
      {quality.length > 0 && <Quality rows={quality} />}
      {nestQuality.length > 0 && <NestedQuality rows={nestQuality} />}
    </section>
  );
}

function Checkpoints(props: { of: Loaded<Awaited<ReturnType<typeof trainer.listCheckpoints>>> }) {
  return (
    <Await of={props.of}>
      {({ checkpoints }) =>
        checkpoints.length > 0 && (
          <Table
            caption="Checkpoints, newest first"
            rows={checkpoints}
            id={(one) => String(one.step)}
            columns={[
              { title: "Step", isNumber: true, cell: (one) => one.step },
              { title: "Saved", cell: (one) => time(one.createdAt) },
              { title: "Size", isNumber: true, cell: (one) => bytes(one.numBytes) },
            ]}
          />
        )
      }
    </Await>
  );
}

function Events(props: { events: readonly Event[] }) {
  return (
    <Table
      caption="Events, newest first"
      rows={[...props.events].reverse()}
      id={(event) => String(event.number)}
      columns={[
        { title: "Time", cell: (event) => time(event.at) },
        { title: "What", cell: (event) => <span class="said">{event.message}</span> },
        { title: "Phase", cell: (event) => event.phase },
      ]}
    />
  );
}
