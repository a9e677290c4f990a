// A page of one collection: the choice among those there are, and what is shown of the chosen one.

import type { ComponentChildren } from "preact";

import type { Collection } from "../gen/router_pb";

import { useLoad } from "./load";
import { Await, Empty } from "./notices";
import { change } from "./place";
import { router } from "./services";

export function OfCollection(props: {
  settings: URLSearchParams;
  /** Settings of the page that belong to the collection. */
  forget?: Record<string, "">;
  children: (collection: Collection) => ComponentChildren;
}) {
  const { settings } = props;
  const answer = useLoad((signal) => router.listCollections({}, { signal }), []);
  return (
    <Await of={answer}>
      {({ collections }) => {
        const chosen = collections.find((one) => one.name === settings.get("collection")) ?? collections[0];
        return chosen ? (
          <>
            <div class="row">
              <label>
                Collection
                <select
                  value={chosen.name}
                  onChange={(event) => change({ ...props.forget, collection: event.currentTarget.value })}
                >
                  {collections.map((one) => (
                    <option key={one.name} value={one.name}>
                      {one.aliases[0] ?? one.name}
                    </option>
                  ))}
                </select>
              </label>
            </div>
            {props.children(chosen)}
          </>
        ) : (
          <Empty title="There are no collections yet">
            <p>Index documents, and come back:</p>
            <pre tabIndex={0}>matryoshka index docs documents.jsonl --create</pre>
          </Empty>
        );
      }}
    </Await>
  );
}
