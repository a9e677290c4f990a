// Training: jobs and what they have made, from a file to what is served.

import { useState } from "preact/hooks";

import { hasDraft } from "../draft";
import { useLoad } from "../load";
import { Await } from "../notices";
import { usePager } from "../pager";
import { trainer } from "../services";
import { JobView } from "../training/job";
import { DRAFT, JobForm } from "../training/job_form";
import { Jobs } from "../training/jobs";
import { PromotionView } from "../training/promotion";
import { Promotions } from "../training/promotions";
import { VersionView } from "../training/version";
import { Versions } from "../training/versions";

const PAGE = 20;
const LOOK_S = 5;

export function TrainingPage(props: { settings: URLSearchParams }) {
  const { settings } = props;
  const job = settings.get("job");
  const version = settings.get("version");
  const promotion = settings.get("promotion");
  if (job) return <JobView key={job} id={job} />;
  if (version) return <VersionView key={version} id={version} before={settings.get("before") ?? ""} />;
  if (promotion) return <PromotionView key={promotion} id={promotion} />;
  return <Overview />;
}

function Overview() {
  const pager = usePager();
  const { after } = pager;
  const jobs = useLoad((signal) => trainer.listJobs({ limit: PAGE, after }, { signal }), [after], LOOK_S);
  return (
    <Await of={jobs}>
      {(listed) => (
        <>
          <Jobs listed={listed} pager={pager} />
          <Start isFirst={!listed.jobs.length} />
          {/* The same scope and the same service: where there are no jobs to be seen, there is nothing of these. */}
          <Versions />
          <Promotions />
        </>
      )}
    </Await>
  );
}

function Start(props: { isFirst: boolean }) {
  // As it is in the beginning: the list may change while the form is filled in.
  const [isOpen] = useState(() => props.isFirst || hasDraft(DRAFT));
  return (
    <details class="card" open={isOpen}>
      <summary>Start a job from a file</summary>
      <JobForm />
    </details>
  );
}
