// The jobs there are.

import { type Job, JobStatus, type ListJobsResponse } from "../../gen/trainer_pb";
import { Empty } from "../notices";
import { type Pager, Turn } from "../pager";
import { to } from "../place";
import { type Column, Table } from "../table";
import { count, spoken, time } from "../words";
import { methodName } from "./methods";

const EXAMPLE = `{"anchor": "how do I change my password?", "positive": "Open Settings, then Security ..."}
{"anchor": "opening hours", "positive": "We are open from nine to five."}`;

/** A state in a word and a colour; the word alone is enough. */
export function State(props: { status: JobStatus }) {
  const { status } = props;
  const look = status === JobStatus.FAILED ? "bad" : status === JobStatus.SUCCEEDED ? "good" : undefined;
  return <span class={look}>{spoken(JobStatus[status])}</span>;
}

function progress(job: Job): string {
  const steps = job.hyperparameters?.steps ?? 0;
  return job.step ? `${count(job.step)} of ${count(steps)}` : "";
}

const COLUMNS: Column<Job>[] = [
  { title: "Job", cell: (job) => <a href={to("training", { job: job.id })}>{job.modelId || job.id}</a> },
  { title: "State", cell: (job) => <State status={job.status} /> },
  { title: "Method", cell: (job) => methodName(job.hyperparameters?.method) },
  { title: "Step", isNumber: true, cell: progress },
  { title: "Created", by: (job) => Number(job.createdAt), cell: (job) => time(job.createdAt) },
];

export function Jobs(props: { listed: ListJobsResponse; pager: Pager }) {
  const { listed, pager } = props;
  if (!listed.jobs.length && !pager.after) {
    return (
      <Empty title="No model has been trained yet">
        <p>
          Write what is asked and what should be found into a file, one example a line, a few hundred of them, and start
          a job from it:
        </p>
        <pre tabIndex={0}>{EXAMPLE}</pre>
      </Empty>
    );
  }
  return (
    <section>
      <Table caption="Jobs, newest first" rows={listed.jobs} id={(job) => job.id} columns={COLUMNS} />
      <Turn pager={pager} last={listed.jobs.at(-1)?.id} hasMore={listed.hasMore} />
    </section>
  );
}
