// The searches that lost hits, for those whose key may see them.

import { Code } from "@connectrpc/connect";

import type { LostSearch } from "../gen/router_pb";

import { useLoad } from "./load";
import { Await } from "./notices";
import { to } from "./place";
import { planWords } from "./plan";
import { router } from "./services";
import { sliceName } from "./slices";
import { Table } from "./table";
import { count, share, time } from "./words";

// A key that may not is told so each time that it asks.
const EVERY_S = 15;
const ROWS = 20;

export function LostSearches(props: { collection: string; slice: string }) {
  const { collection, slice } = props;
  const answer = useLoad(
    (signal) => router.listLostSearches({ collection, slice }, { signal }),
    [collection, slice],
    EVERY_S,
  );
  if (answer.problem?.code === Code.PermissionDenied) {
    return (
      <p class="soft">
        {answer.problem.message} {answer.problem.next}
      </p>
    );
  }
  return (
    <Await of={answer}>
      {({ searches }) =>
        searches.length ? (
          <Table
            caption={`The last searches of the slice ${sliceName(slice)} that lost hits, newest first`}
            rows={searches}
            id={(search) => `${search.at} ${searches.indexOf(search)}`}
            most={ROWS}
            columns={[
              { title: "Time", cell: (search) => time(search.at), by: (search) => Number(search.at) },
              { title: "Query", cell: (search) => <Query collection={collection} search={search} /> },
              { title: "Plan", cell: (search) => <span class="steady">{planWords(search.plan)}</span> },
              {
                title: "Recall",
                isNumber: true,
                cell: (search) => share(search.recall),
                by: (search) => search.recall,
              },
              { title: "Lost", cell: (search) => <Ids ids={search.lostIds} all={search.numLost} /> },
              { title: "Found", cell: (search) => <Ids ids={search.foundIds} all={search.numFound} /> },
            ]}
          />
        ) : (
          <p class="soft">No measured search of this slice lost a hit that is still known.</p>
        )
      }
    </Await>
  );
}

function Query(props: { collection: string; search: LostSearch }) {
  const { collection, search } = props;
  if (search.text === undefined) return <span class="soft">a vector</span>;
  if (search.textCut) return <span class="query">{search.text} …</span>;
  return (
    <a class="query" href={to("search", { collection, query: search.text })}>
      {search.text}
    </a>
  );
}

function Ids(props: { ids: readonly string[]; all: number }) {
  const more = props.all - props.ids.length;
  return (
    <code class="ids">
      {props.ids.join(", ")}
      {more > 0 && ` and ${count(more)} more`}
    </code>
  );
}
