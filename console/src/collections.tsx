// What there is to search: sizes, memory, aliases, and changes under way.

import { useState } from "preact/hooks";

import type { Collection, ListCollectionsResponse, Size } from "../gen/router_pb";

import type { Loaded } from "./load";
import { Await, Bar, Empty } from "./notices";
import { usePart } from "./part";
import { to } from "./place";
import { sizeMemory } from "./sizes";
import { Table } from "./table";
import { bytes, count, size } from "./words";

const MOST_CARDS = 24;

export function Collections(props: { of: Loaded<ListCollectionsResponse> }) {
  return (
    <Await of={props.of}>
      {({ collections: all }) =>
        all.length ? (
          <Cards all={all} />
        ) : (
          <Empty title="There are no collections yet">
            <p>One command makes one, and encodes and writes what is in a file:</p>
            <pre tabIndex={0}>matryoshka index docs documents.jsonl</pre>
          </Empty>
        )
      }
    </Await>
  );
}

function Cards(props: { all: readonly Collection[] }) {
  const [wanted, setWanted] = useState("");
  const found = props.all.filter((one) => [one.name, ...one.aliases].some((name) => name.includes(wanted)));
  const { shown, turn } = usePart(found, MOST_CARDS);
  return (
    <>
      {props.all.length > MOST_CARDS && (
        <label>
          Find a collection
          <input
            type="search"
            value={wanted}
            placeholder="a part of its name or alias"
            onInput={(event) => setWanted(event.currentTarget.value)}
          />
        </label>
      )}
      <p role="status">{found.length === 0 && "No collection is called so."}</p>
      <div class="cards">
        {shown.map((one) => (
          <CollectionCard key={one.name} collection={one} />
        ))}
      </div>
      {turn}
    </>
  );
}

function CollectionCard(props: { collection: Collection }) {
  const { collection } = props;
  const { change } = collection;
  const columns = [
    { title: "Size", cell: (one: Size) => size(one.dim, one.nested) },
    { title: "Codes", cell: (one: Size) => sizeMemory(collection, one).codes },
    {
      title: "Each",
      isNumber: true,
      cell: (one: Size) => bytes(sizeMemory(collection, one).bytes),
    },
    {
      title: "All",
      isNumber: true,
      cell: (one: Size) => bytes(BigInt(sizeMemory(collection, one).bytes) * collection.numPoints),
    },
  ];
  return (
    <section class="card" aria-label={collection.name}>
      <h3>{collection.name}</h3>
      <dl>
        <dt>Points</dt>
        <dd>{count(collection.numPoints)}</dd>
        {collection.aliases.length > 0 && (
          <>
            <dt>Aliases</dt>
            <dd>{collection.aliases.join(", ")}</dd>
          </>
        )}
        <dt>Model</dt>
        <dd>{collection.model}</dd>
        <dt>Space</dt>
        <dd>
          <code>{collection.spaceId}</code>
        </dd>
        <dt>Shards</dt>
        <dd>
          {collection.shards}, {collection.replicas === 1 ? "one copy" : `${collection.replicas} copies`} of each
        </dd>
      </dl>
      {change?.error && <p class="bad">{`The last change (${change.kind}) ended early: ${change.error}`}</p>}
      {change && !change.error && (
        <Bar step={`${change.kind}: ${change.step}`} done={Number(change.done)} total={Number(change.total)} />
      )}
      <Table caption="Memory of each size" rows={collection.sizes} id={(one) => size(one.dim, one.nested)} columns={columns} />
      <a href={to("search", { collection: collection.name })}>Search in it</a>
    </section>
  );
}
