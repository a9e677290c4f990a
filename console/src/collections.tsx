// What there is to search: sizes, memory, aliases, and changes under way.

import { useState } from "preact/hooks";

import type { Collection, ListCollectionsResponse, Size } from "../gen/router_pb";

import { type Loaded, useDoing } from "./load";
import { Alert, Await, Bar, Empty } from "./notices";
import { usePart } from "./part";
import { to } from "./place";
import { router } from "./services";
import { sizeMemory } from "./sizes";
import { Table } from "./table";
import { bytes, count, size } from "./words";

const MOST_CARDS = 24;

export function Collections(props: { of: Loaded<ListCollectionsResponse> }) {
  return (
    <Await of={props.of}>
      {({ collections: all }) =>
        all.length ? (
          <Cards all={all} onChanged={props.of.reload} />
        ) : (
          <Empty title="There are no collections yet">
            <p>One command makes one, and encodes and writes what is in a file:</p>
            <pre tabIndex={0}>matryoshka index docs documents.jsonl --create</pre>
          </Empty>
        )
      }
    </Await>
  );
}

function Cards(props: { all: readonly Collection[]; onChanged: () => void }) {
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
          <CollectionCard key={one.name} collection={one} onChanged={props.onChanged} />
        ))}
      </div>
      {turn}
    </>
  );
}

function CollectionCard(props: { collection: Collection; onChanged: () => void }) {
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
      <AliasForm collection={collection.name} onDone={props.onChanged} />
    </section>
  );
}

/** Names that applications search by can be moved to another collection, and promotions move them. */
function AliasForm(props: { collection: string; onDone: () => void }) {
  const { collection } = props;
  const [alias, setAlias] = useState("");
  const name = useDoing(async (signal) => {
    await router.setCollectionAlias({ alias: alias.trim(), collection }, { signal });
    setAlias("");
    props.onDone();
  });
  const submit = (event: Event): void => {
    event.preventDefault();
    name.run();
  };
  return (
    <details>
      <summary>Point an alias at it</summary>
      <form class="row" onSubmit={submit}>
        <label>
          Alias
          <input required value={alias} onInput={(event) => setAlias(event.currentTarget.value)} />
        </label>
        <button type="submit" disabled={name.isRunning}>
          Point it here
        </button>
      </form>
      <p class="soft">An alias that points elsewhere is moved. A promotion moves aliases, so applications search by them.</p>
      <Alert problem={name.problem} />
    </details>
  );
}
