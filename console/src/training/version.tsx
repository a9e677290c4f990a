// One version: where it comes from, how it compares, and the way into service.

import type { ModelVersion } from "../../gen/trainer_pb";
import { useLoad } from "../load";
import { Await } from "../notices";
import { change, to } from "../place";
import { trainer } from "../services";
import { time } from "../words";
import { Comparison } from "./comparison";
import { methodName } from "./methods";
import { PromotionForm } from "./promotion_form";
import { Quality } from "./quality";
import { Origin } from "./versions";

// Older ones can be named in the address.
const OTHERS = 100;

export function VersionView(props: { id: string; before: string }) {
  const { id } = props;
  const version = useLoad((signal) => trainer.getVersion({ id }, { signal }), [id]);
  return (
    <>
      <p>
        <a href={to("training")}>All jobs and versions</a>
      </p>
      <Await of={version}>
        {({ version: found }) =>
          found && (
            <>
              <Summary version={found} />
              <section>
                <h2>Compare</h2>
                <Compared version={found} before={props.before || found.parent || found.baseModel} />
              </section>
              <section>
                <h2>Promote</h2>
                <p class="soft">
                  The gate judges it by what its held-out queries lose against what is served. If it may pass, the
                  encoder loads it, the collections are filled with its vectors, and then the aliases switch; no query
                  fails meanwhile.
                </p>
                <PromotionForm version={found.id} />
              </section>
              <section>
                <h2>Quality of each size</h2>
                <Quality rows={found.quality} />
              </section>
            </>
          )
        }
      </Await>
    </>
  );
}

function Summary(props: { version: ModelVersion }) {
  const { version } = props;
  return (
    <section class="card" aria-label="The version">
      <h2>{version.id}</h2>
      <dl>
        <dt>Version</dt>
        <dd>
          {version.version} of {version.name}
        </dd>
        <dt>Aliases</dt>
        <dd>{version.aliases.join(", ") || "none"}</dd>
        <dt>Trained from</dt>
        <dd>
          <Origin version={version} />
        </dd>
        <dt>By</dt>
        <dd>
          <a href={to("training", { job: version.jobId })}>{methodName(version.hyperparameters?.method)}</a>
          {`, ${time(version.createdAt)}`}
        </dd>
        <dt>Data</dt>
        <dd>
          {version.dataName} <code>{version.dataDigest}</code>
        </dd>
        <dt>Space</dt>
        <dd>
          <code>{version.spaceId}</code>
        </dd>
        <dt>Folder</dt>
        <dd>
          <code>{version.modelDir}</code>
        </dd>
      </dl>
    </section>
  );
}

function Compared(props: { version: ModelVersion; before: string }) {
  const { version, before } = props;
  const { id } = version;
  const others = useLoad((signal) => trainer.listVersions({ limit: OTHERS }, { signal }), []);
  const compared = useLoad((signal) => trainer.compareVersions({ before, after: id }, { signal }), [before, id]);
  const listed = others.value?.versions.map((one) => one.id) ?? [];
  const known = new Set([version.baseModel, version.parent, before, ...listed]);
  return (
    <>
      <div class="row">
        <label>
          Before
          <select value={before} onChange={(event) => change({ before: event.currentTarget.value })}>
            {[...known]
              .filter((one) => one && one !== id)
              .map((one) => (
                <option key={one} value={one}>
                  {one}
                </option>
              ))}
          </select>
        </label>
      </div>
      <Await of={compared}>{({ slices }) => <Comparison caption={`From ${before} to ${id}`} slices={slices} />}</Await>
    </>
  );
}
