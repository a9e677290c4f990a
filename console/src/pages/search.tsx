// One query, three ways: the short size alone, the plan, and exact search, side by side.

import { create } from "@bufbuild/protobuf";
import { useEffect, useState } from "preact/hooks";

import {
  type Collection,
  type Plan,
  PlanSchema,
  type SearchResponse,
  type StageReport,
  StageSchema,
} from "../../gen/router_pb";
import { useDoing, useLoad } from "../load";
import { Alert, Await, Empty, Snippet } from "../notices";
import { change } from "../place";
import { planWords } from "../plan";
import { Rankings } from "../rankings";
import { router } from "../services";
import { snippets } from "../snippets";
import { Table } from "../table";
import { bytes, ms, share, size } from "../words";
import { type SizeCost, sizeMemory } from "../sizes";

const LIMIT = 10;
// Of sliders that move: let the hand come to rest before asking.
const REST_MS = 200;

interface Answers {
  short: SearchResponse;
  plan: SearchResponse;
  exact: SearchResponse;
}

/** What is asked for besides the text. */
interface Wish {
  collection: Collection;
  text: string;
  /** The place of the short size in the collection's sizes. */
  short: number;
  candidates: number;
  /** 0: as many candidates as `candidates` says. */
  target: number;
}

function singleStage(collection: Collection, at: number, exact: boolean): Plan {
  const { dim, nested } = collection.sizes[at]!;
  return create(PlanSchema, { stages: [create(StageSchema, { dim, nested, exact })] });
}

function twoStages(wish: Wish): Plan {
  const short = wish.collection.sizes[wish.short]!;
  const full = wish.collection.sizes.at(-1)!;
  const first = { dim: short.dim, nested: short.nested, candidates: wish.candidates };
  return create(PlanSchema, { stages: [create(StageSchema, first), create(StageSchema, { dim: full.dim })] });
}

/** Return what the middle column sends; it is shown to be copied, too. */
function request(wish: Wish) {
  const wanted = wish.target ? { recallTarget: wish.target } : { plan: twoStages(wish) };
  return {
    collection: wish.collection.name,
    query: { case: "text" as const, value: wish.text },
    limit: LIMIT,
    ...wanted,
  };
}

async function ask(wish: Wish, signal: AbortSignal): Promise<Answers> {
  const { collection } = wish;
  const asked = request(wish);
  // Explained: so none of the three counts as a live search, whose recall is watched.
  const alone = { collection: asked.collection, query: asked.query, limit: LIMIT, explain: true };
  const full = collection.sizes.length - 1;
  // Exact search brings the vectors' pages into the disk's cache: it goes last.
  const short = await router.search({ ...alone, plan: singleStage(collection, wish.short, false) }, { signal });
  const plan = await router.search({ ...asked, explain: true, measureRecall: true }, { signal });
  const exact = await router.search({ ...alone, plan: singleStage(collection, full, true) }, { signal });
  return { short, plan, exact };
}

export function SearchPage(props: { settings: URLSearchParams }) {
  const collections = useLoad((signal) => router.listCollections({}, { signal }), []);
  return (
    <Await of={collections}>
      {(answer) =>
        answer.collections.length ? (
          <Searches collections={answer.collections} settings={props.settings} />
        ) : (
          <Empty title="There is nothing to search yet">
            <p>Index documents, and come back:</p>
            <pre tabIndex={0}>matryoshka index docs documents.jsonl --create</pre>
          </Empty>
        )
      }
    </Await>
  );
}

function Searches(props: { collections: Collection[]; settings: URLSearchParams }) {
  const { collections, settings } = props;
  const collection = collections.find((one) => one.name === settings.get("collection")) ?? collections[0]!;
  const longest = Math.max(0, collection.sizes.length - 2);
  const wish: Wish = {
    collection,
    text: settings.get("query") ?? "",
    short: Math.min(Number(settings.get("short") ?? 0), longest),
    candidates: Number(settings.get("candidates") ?? 100),
    target: settings.get("by") === "recall" ? Number(settings.get("target") ?? 0.95) : 0,
  };
  const [answers, setAnswers] = useState<Answers>();
  const search = useDoing(async (signal) => setAnswers(await ask(wish, signal)));
  useEffect(() => {
    if (!wish.text) return;
    const timer = setTimeout(search.run, REST_MS);
    return () => clearTimeout(timer);
  }, [collection.name, wish.text, wish.short, wish.candidates, wish.target]);
  return (
    <>
      <Controls collections={collections} wish={wish} isRunning={search.isRunning} onAgain={search.run} />
      <Alert problem={search.problem} onRetry={search.run} />
      {answers && wish.text ? (
        <Found wish={wish} answers={answers} />
      ) : (
        !search.problem && (
          <Empty title="Ask something">
            <p>
              Each query is answered three times: by a short prefix of the vectors alone, by a plan that shortlists on
              it and reranks on all numbers, and by exact search. Lines join hits that moved.
            </p>
          </Empty>
        )
      )}
    </>
  );
}

function Controls(props: { collections: Collection[]; wish: Wish; isRunning: boolean; onAgain: () => void }) {
  const { wish } = props;
  const [text, setText] = useState(wish.text);
  const short = wish.collection.sizes[wish.short];
  const submit = (event: Event): void => {
    event.preventDefault();
    if (text === wish.text) props.onAgain();
    else change({ query: text });
  };
  return (
    <form onSubmit={submit}>
      <div class="row">
        <label class="wide">
          Query
          <input
            type="search"
            required
            value={text}
            placeholder="What are you looking for?"
            onInput={(event) => setText(event.currentTarget.value)}
          />
        </label>
        <label>
          Collection
          <select
            value={wish.collection.name}
            onChange={(event) => change({ collection: event.currentTarget.value, short: "" })}
          >
            {props.collections.map((one) => (
              <option key={one.name} value={one.name}>
                {one.aliases[0] ?? one.name}
              </option>
            ))}
          </select>
        </label>
        <button type="submit" aria-busy={props.isRunning}>
          Search
        </button>
      </div>
      <fieldset class="row">
        <label class="check">
          <input type="radio" name="by" checked={!wish.target} onChange={() => change({ by: "" })} />
          Set the plan
        </label>
        <label class="check">
          <input type="radio" name="by" checked={!!wish.target} onChange={() => change({ by: "recall" })} />
          Say the recall
        </label>
        <label>
          Short size: {short && size(short.dim, short.nested)}
          <input
            type="range"
            min="0"
            max={Math.max(0, wish.collection.sizes.length - 2)}
            value={wish.short}
            onInput={(event) => change({ short: event.currentTarget.value })}
          />
        </label>
        {wish.target ? (
          <label>
            Recall target: {share(wish.target)}
            <input
              type="range"
              min="0.8"
              max="0.995"
              step="0.005"
              value={wish.target}
              onInput={(event) => change({ target: event.currentTarget.value })}
            />
          </label>
        ) : (
          <label>
            Candidates: {wish.candidates}
            <input
              type="range"
              min="10"
              max="500"
              step="10"
              value={wish.candidates}
              onInput={(event) => change({ candidates: event.currentTarget.value })}
            />
          </label>
        )}
      </fieldset>
    </form>
  );
}

function Found(props: { wish: Wish; answers: Answers }) {
  const { wish, answers } = props;
  const { collection } = wish;
  const short = collection.sizes[wish.short]!;
  const stage = answers.short.plan?.stages[0];
  const columns = [
    { title: `Short: ${stage ? size(stage.dim, stage.nested) : size(short.dim, short.nested)} numbers`, answer: answers.short },
    { title: `Plan: ${planWords(answers.plan.plan)}`, answer: answers.plan },
    { title: "Exact search", answer: answers.exact },
  ];
  const { plan } = answers;
  return (
    <>
      <p>
        The plan found <strong>{Math.round((plan.recall ?? 0) * LIMIT)}</strong> of the {LIMIT} hits of exact search in{" "}
        {ms(plan.searchSeconds * 1000)}; exact search took {ms(plan.exactSeconds * 1000)}.{" "}
        {plan.promise && (
          <span class={plan.promise.met ? "good" : "bad"}>
            {plan.promise.met
              ? `Sure of a recall of ${share(plan.promise.recall)} in the mean. `
              : `The target of ${share(plan.promise.recallTarget)} is not kept. `}
            {plan.promise.note}
          </span>
        )}
      </p>
      <Rankings columns={columns} />
      <Stages collection={collection} answer={plan} />
      {snippets(request(wish)).map(({ title, text }) => (
        <Snippet key={title} title={title} text={text} />
      ))}
    </>
  );
}

function Stages(props: { collection: Collection; answer: SearchResponse }) {
  const { collection, answer } = props;
  const cost = (stage: StageReport): SizeCost | undefined => {
    const kept = collection.sizes.find((one) => one.dim === stage.dim && one.nested === stage.nested);
    return kept && sizeMemory(collection, kept);
  };
  return (
    <>
      <Table
        caption="What each stage did"
        rows={answer.stages}
        id={(stage) => size(stage.dim, stage.nested)}
        columns={[
          { title: "Stage", cell: (stage) => size(stage.dim, stage.nested) },
          { title: "Candidates", isNumber: true, cell: (stage) => stage.candidates },
          { title: "Time", isNumber: true, cell: (stage) => ms(stage.seconds * 1000) },
          {
            title: "Codes",
            cell: (stage) => cost(stage)?.codes,
          },
          {
            title: "Memory for each vector",
            isNumber: true,
            cell: (stage) => bytes(cost(stage)?.bytes ?? 0),
          },
        ]}
      />
      <p class="soft">Encoding the query took {ms(answer.encodeSeconds * 1000)}.</p>
    </>
  );
}
