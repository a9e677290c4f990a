// A job begun from a file. What was entered stays whatever is refused.

import { Code, ConnectError } from "@connectrpc/connect";
import { useState } from "preact/hooks";

import { Head, Method } from "../../gen/trainer_pb";
import { useDraft } from "../draft";
import { FileField } from "../file_field";
import { useDoing } from "../load";
import { Alert, Bar } from "../notices";
import { to } from "../place";
import { trainer } from "../services";
import { upload } from "../upload";
import { HEADS, METHODS } from "./methods";

// A file that has arrived is not sent again when another field was wrong.
const sent = new WeakMap<File, string>();

interface Wish {
  training?: File | undefined;
  validation?: File | undefined;
  method: Method;
  head: Head;
  sizes: string;
  suffix: string;
  baseModel: string;
  steps: string;
  columns: string;
  batchSize: string;
  learningRate: string;
  negatives: string;
  collection: string;
}

export const DRAFT = "job";

const FIRST: Wish = {
  method: Method.ADAPTOR,
  head: Head.ROTATION,
  sizes: "",
  suffix: "",
  baseModel: "",
  steps: "",
  columns: "",
  batchSize: "",
  learningRate: "",
  negatives: "",
  collection: "",
};

const MORE = ["columns", "batchSize", "learningRate", "negatives", "collection"] as const;

interface Sending {
  name: string;
  done: number;
  total: number;
}

async function arrived(file: File | undefined, signal: AbortSignal, tell: (sending: Sending) => void): Promise<string> {
  if (!file) return "";
  const known = sent.get(file);
  if (known) return known;
  const { name, size } = file;
  tell({ name, done: 0, total: size });
  const id = await upload(file, signal, (done, total) => tell({ name, done, total }));
  sent.set(file, id);
  return id;
}

async function begin(wish: Wish, signal: AbortSignal, tell: (sending?: Sending) => void): Promise<string> {
  const trainingFile = await arrived(wish.training, signal, tell);
  const validationFile = await arrived(wish.validation, signal, tell);
  tell();
  try {
    const { job } = await trainer.createJob({ ...asked(wish), trainingFile, validationFile }, { signal });
    return job?.id ?? "";
  } catch (reason) {
    // A file was deleted meanwhile, or is another key's: it is sent again next time.
    if (ConnectError.from(reason).code === Code.NotFound) {
      for (const file of [wish.training, wish.validation]) if (file) sent.delete(file);
    }
    throw reason;
  }
}

/** What is asked for besides the files. */
function asked(wish: Wish) {
  const { method } = wish;
  return {
    baseModel: method === Method.NEST ? "" : wish.baseModel.trim(),
    suffix: wish.suffix.trim(),
    hyperparameters: {
      method,
      head: method === Method.ADAPTOR ? wish.head : Head.UNSPECIFIED,
      matryoshkaDims: (wish.sizes.match(/\d+/g) ?? []).map(Number),
      steps: Number(wish.steps),
      batchSize: Number(wish.batchSize),
      learningRate: Number(wish.learningRate),
    },
    columns: method === Method.NEST ? {} : columns(wish.columns),
    mineNegatives: canMine(method) ? mining(wish) : undefined,
  };
}

/** "field = role" a line; what is not so is sent too, and refused with what would be right. */
function columns(text: string): Record<string, string> {
  const given = text.split("\n").filter((line) => line.trim());
  return Object.fromEntries(
    given.map((line) => {
      // A role has no "=" in it, the name of a field may.
      const at = line.lastIndexOf("=");
      return at < 0 ? [line.trim(), ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    }),
  );
}

/** A collection by itself asks for as many as usual. */
function mining({ negatives, collection }: Wish): { negatives: number; collection: string } | undefined {
  return negatives || collection ? { negatives: Number(negatives), collection: collection.trim() } : undefined;
}

/** Nesting has no pairs, and a student asks its teacher alone. */
function canMine(method: Method): boolean {
  return method !== Method.NEST && method !== Method.DISTILL;
}

export function JobForm() {
  const { value: wish, set, drop } = useDraft(DRAFT, FIRST);
  const [sending, setSending] = useState<Sending>();
  const start = useDoing(async (signal, wanted: Wish) => {
    const id = await begin(wanted, signal, setSending).finally(() => setSending(undefined));
    drop();
    location.hash = to("training", { job: id });
  });
  const submit = (event: Event): void => {
    event.preventDefault();
    start.run(wish);
  };
  return (
    <form onSubmit={submit} aria-label="Start a job">
      <Files wish={wish} set={set} />
      <Settings wish={wish} set={set} />
      <MoreSettings wish={wish} set={set} />
      <Alert problem={start.problem} />
      {sending && <Bar step={`Sending ${sending.name}, bytes`} done={sending.done} total={sending.total} />}
      {start.isRunning && !sending && <p role="status">Checking the data …</p>}
      <div class="row">
        <button type="submit" disabled={start.isRunning}>
          Start the job
        </button>
        {start.isRunning && (
          <button type="button" class="quiet" onClick={start.stop}>
            Stop
          </button>
        )}
      </div>
    </form>
  );
}

interface Part {
  wish: Wish;
  set: (changed: Partial<Wish>) => void;
}

function Files({ wish, set }: Part) {
  const isNest = wish.method === Method.NEST;
  return (
    <div class="row">
      <FileField
        label={isNest ? "Vectors of documents" : "Training file"}
        hint={isNest ? ".npy, float32, at least 1000 rows; choose it, or drop it here" : "JSON lines, CSV or Parquet; choose it, or drop it here"}
        isRequired
        file={wish.training}
        onFile={(training) => set({ training })}
      />
      <FileField
        label={isNest ? "Vectors of queries, if there are any" : "Validation file, if there is one"}
        hint={isNest ? "else documents stand in for them" : "else a tenth of the examples is held out"}
        file={wish.validation}
        onFile={(validation) => set({ validation })}
      />
    </div>
  );
}

function Settings({ wish, set }: Part) {
  const method = METHODS.find(([one]) => one === wish.method);
  return (
    <>
      <div class="row top">
        <label>
          Method
          <select value={wish.method} onChange={(event) => set({ method: Number(event.currentTarget.value) })}>
            {METHODS.map(([one, name]) => (
              <option key={one} value={one}>
                {name}
              </option>
            ))}
          </select>
        </label>
        {wish.method === Method.ADAPTOR && (
          <label>
            Head
            <select value={wish.head} onChange={(event) => set({ head: Number(event.currentTarget.value) })}>
              {HEADS.map(([one, name]) => (
                <option key={one} value={one}>
                  {name}
                </option>
              ))}
            </select>
          </label>
        )}
        <label>
          Sizes
          <input
            value={wish.sizes}
            placeholder="all powers of two"
            pattern="[\d,\s]*"
            title="Sizes below the full one, ascending, for example 32, 64, 128; empty: powers of two"
            onInput={(event) => set({ sizes: event.currentTarget.value })}
          />
        </label>
        <label>
          Name, part of the model's id
          <input
            value={wish.suffix}
            placeholder="docs"
            pattern="\s*[A-Za-z0-9\-]{1,64}\s*"
            title="1 to 64 letters, digits or -"
            onInput={(event) => set({ suffix: event.currentTarget.value })}
          />
        </label>
        {wish.method !== Method.NEST && (
          <label>
            Base model
            <input
              value={wish.baseModel}
              placeholder="the packaged one"
              title="A folder where the trainer runs, or a hub id"
              onInput={(event) => set({ baseModel: event.currentTarget.value })}
            />
          </label>
        )}
        <NumberField wish={wish} set={set} name="steps" label="Steps" min={1} max={1000000} />
      </div>
      <p class="soft">{method?.[2]}</p>
    </>
  );
}

interface NumberPart extends Part {
  name: "steps" | "batchSize" | "learningRate" | "negatives";
  label: string;
  min: number;
  max: number;
  /** "any": not only whole numbers. */
  step?: "any";
  /** What stands there while nothing is entered. */
  empty?: string;
}

function NumberField({ wish, set, name, label, min, max, step, empty = "as fits" }: NumberPart) {
  return (
    <label>
      {label}
      <input
        type="number"
        min={min}
        max={max}
        step={step}
        value={wish[name]}
        placeholder={empty}
        onInput={(event) => set({ [name]: event.currentTarget.value })}
      />
    </label>
  );
}

function MoreSettings({ wish, set }: Part) {
  // As it is in the beginning: what was entered before the page was built anew is seen.
  const [isOpen] = useState(() => MORE.some((name) => wish[name]));
  return (
    // A field that is not right can be shown only where it is seen.
    <details open={isOpen} onInvalidCapture={(event) => (event.currentTarget.open = true)}>
      <summary>More settings</summary>
      <div class="row top">
        {wish.method !== Method.NEST && (
          <label class="wide">
            Columns: what the file's fields are, one a line
            <textarea
              rows={2}
              value={wish.columns}
              placeholder={"title = anchor\nbody = positive"}
              onInput={(event) => set({ columns: event.currentTarget.value })}
            />
          </label>
        )}
        <NumberField wish={wish} set={set} name="batchSize" label="Batch size" min={2} max={16384} />
        <NumberField wish={wish} set={set} name="learningRate" label="Learning rate" min={0} max={1} step="any" />
        {canMine(wish.method) && (
          <NumberField wish={wish} set={set} name="negatives" label="Negatives to mine for each pair" min={1} max={100} empty="none" />
        )}
        {canMine(wish.method) && (
          <label>
            Also from the collection
            <input
              value={wish.collection}
              maxLength={255}
              placeholder="none"
              onInput={(event) => set({ collection: event.currentTarget.value })}
            />
          </label>
        )}
      </div>
      {wish.method !== Method.NEST && (
        <p class="soft">
          Fields of the usual names need no word. Where yours have others, say what each is: anchor, positive, negatives,
          slice; first, second, score; text, label. Only those that you name count then.
        </p>
      )}
    </details>
  );
}
