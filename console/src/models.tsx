// The models that the encoder serves, with what is on their cards.

import { Fragment } from "preact";

import { type EngineTrial, type GetModelResponse, type ListModelsResponse, type Model, ModelKind } from "../gen/encoder_pb";
import { type Card, readCard, retained, type Retained } from "./card";
import { type Loaded, useLoad } from "./load";
import { Await, Empty } from "./notices";
import { encoder } from "./services";
import { Table } from "./table";
import { bytes, count, share, time } from "./words";

export function Models(props: { of: Loaded<ListModelsResponse> }) {
  return (
    <Await of={props.of}>
      {({ models }) =>
        models.length ? (
          <div class="cards">
            {models.map((one) => (
              <ModelCard key={one.id} model={one} />
            ))}
          </div>
        ) : (
          <Empty title="No model is loaded">
            <p>One command loads a folder or a model of the hub, beside those that are served:</p>
            <pre tabIndex={0}>matryoshka models load ./model</pre>
          </Empty>
        )
      }
    </Await>
  );
}

function ModelCard(props: { model: Model }) {
  const { model } = props;
  const { id, spaceId } = model;
  // A card may be long, and stays as it is: it is asked for once.
  const details = useLoad((signal) => encoder.getModel({ model: id }, { signal }), [id, spaceId]);
  return (
    <section class="card" aria-label={id}>
      <h3>{id}</h3>
      <Facts model={model} />
      <Await of={details}>{(answer) => <Details answer={answer} />}</Await>
    </section>
  );
}

function Facts(props: { model: Model }) {
  const { model } = props;
  const isEmbedder = model.kind !== ModelKind.CROSS_ENCODER;
  const facts: [name: string, value: string][] = [
    ["Aliases", model.aliases.join(", ")],
    ["Kind", isEmbedder ? "" : "cross-encoder, for reranking"],
    ["Dimensions", isEmbedder ? count(model.dim) : ""],
    ["Sizes", isEmbedder ? model.matryoshkaDims.join(", ") || "none declared" : ""],
    ["Takes", model.takesImages ? "texts and pictures" : ""],
    ["Longest text", `${count(model.maxTokens)} tokens`],
    ["Engine", `${model.engine} on ${model.device}`],
    ["Memory", bytes(model.memoryBytes)],
    ["Loaded", time(model.loadedAt)],
    ["Space", model.spaceId],
    ["Base space", model.baseSpaceId],
  ];
  return (
    <dl>
      {facts
        .filter(([, value]) => value)
        .map(([name, value]) => (
          <Fragment key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </Fragment>
        ))}
    </dl>
  );
}

function Details(props: { answer: GetModelResponse }) {
  const card = readCard(props.answer.cardJson);
  return (
    <>
      {card ? <Kept card={card} /> : <p class="soft">It has no card, so nobody knows what its sizes keep.</p>}
      {card && <Prompts prompts={card.prompts} />}
      {props.answer.trials.length > 0 && <Trials trials={props.answer.trials} />}
    </>
  );
}

function Kept(props: { card: Card }) {
  const { quality } = props.card;
  const rows: Retained[] = retained(props.card);
  if (!quality || !rows.length) return <p class="soft">What its sizes keep was not measured.</p>;
  const name = quality.after[0]?.spearman === undefined ? "nDCG@10" : "Spearman";
  const judges = quality.judged_by === "neighbours" ? ", judged by what the full size ranks first" : "";
  return (
    <Table
      caption={`Measured on ${quality.data}: ${count(quality.num_queries)} asked of ${count(quality.num_documents)}${judges}`}
      rows={rows}
      id={(row) => String(row.dim)}
      columns={[
        { title: "Size", isNumber: true, cell: (row) => row.dim },
        { title: name, isNumber: true, cell: (row) => share(row.score) },
        { title: "Keeps", isNumber: true, cell: (row) => `${(row.share * 100).toFixed(1)} %` },
      ]}
    />
  );
}

function Prompts(props: { prompts: Record<string, string> }) {
  const all = Object.entries(props.prompts).filter(([, text]) => text);
  if (!all.length) return null;
  return (
    <dl>
      {all.map(([role, text]) => (
        <Fragment key={role}>
          <dt>Before a {role}</dt>
          <dd>
            <code>{text}</code>
          </dd>
        </Fragment>
      ))}
    </dl>
  );
}

function Trials(props: { trials: readonly EngineTrial[] }) {
  return (
    <details>
      <summary>Ways to run it, as measured here</summary>
      <Table
        caption="The fastest faithful one was taken"
        rows={props.trials}
        id={(trial) => trial.engine}
        columns={[
          { title: "Engine", cell: (trial) => trial.engine },
          { title: "Smallest cosine", isNumber: true, cell: (trial) => trial.minCosine.toFixed(5) },
          { title: "Tokens a second", isNumber: true, cell: (trial) => count(Math.round(trial.tokensPerSecond)) },
        ]}
      />
    </details>
  );
}
