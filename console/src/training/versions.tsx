// What jobs have made.

import type { ModelVersion } from "../../gen/trainer_pb";
import { useLoad } from "../load";
import { Await } from "../notices";
import { Turn, usePager } from "../pager";
import { to } from "../place";
import { trainer } from "../services";
import { type Column, Table } from "../table";
import { share, time } from "../words";
import { metric, score } from "./scores";

const PAGE = 20;

export function VersionLink(props: { id: string }) {
  return <a href={to("training", { version: props.id })}>{props.id}</a>;
}

/** What it was trained from: another version, or a model. */
export function Origin(props: { version: ModelVersion }) {
  const { parent, baseModel } = props.version;
  return parent ? <VersionLink id={parent} /> : <>{baseModel}</>;
}

/** "nDCG@10 0.41 at 16, 0.52 at 384". */
function quality(version: ModelVersion): string {
  const [first, last] = [version.quality[0], version.quality.at(-1)];
  if (!first || !last) return "";
  const at = [first, last].map((row) => `${share(score(row.after))} at ${row.dim}`);
  return `${metric(last.after)} ${at.join(", ")}`;
}

const COLUMNS: Column<ModelVersion>[] = [
  { title: "Version", cell: (one) => <VersionLink id={one.id} /> },
  { title: "Number", isNumber: true, cell: (one) => one.version },
  { title: "Trained from", cell: (one) => <Origin version={one} /> },
  { title: "Aliases", cell: (one) => one.aliases.join(", ") },
  { title: "Quality", cell: quality },
  { title: "Created", cell: (one) => time(one.createdAt) },
];

export function Versions() {
  const pager = usePager();
  const { after } = pager;
  const versions = useLoad((signal) => trainer.listVersions({ limit: PAGE, after }, { signal }), [after]);
  return (
    <section>
      <h2>Versions</h2>
      <Await of={versions}>
        {(listed) =>
          listed.versions.length || after ? (
            <>
              <Table caption="Versions, newest first" rows={listed.versions} id={(one) => one.id} columns={COLUMNS} />
              <Turn pager={pager} last={listed.versions.at(-1)?.id} hasMore={listed.hasMore} />
            </>
          ) : (
            <p class="soft">A job that succeeds makes one, to be compared with what is served, and promoted.</p>
          )
        }
      </Await>
    </section>
  );
}
