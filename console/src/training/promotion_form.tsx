// What a promotion must keep, and what it shall move.

import { useDraft } from "../draft";
import { useDoing, useLoad } from "../load";
import { Alert, Await } from "../notices";
import { to } from "../place";
import { router, trainer } from "../services";

interface Wish {
  maxDrop: string;
  slices: string;
  minQueries: string;
  encoderAlias: string;
  collections: string[];
  hold: boolean;
  watch: boolean;
}

const FIRST: Wish = {
  maxDrop: "0.01",
  slices: "",
  minQueries: "30",
  encoderAlias: "default",
  collections: [],
  hold: false,
  watch: true,
};

function lines(text: string): string[] {
  return text.split("\n").filter((line) => line.trim());
}

async function begin(version: string, wish: Wish, signal: AbortSignal): Promise<string> {
  const { collections, hold, watch } = wish;
  const gate = { maxDrop: Number(wish.maxDrop), slices: lines(wish.slices), minQueries: Number(wish.minQueries) };
  const asked = { version, encoderAlias: wish.encoderAlias.trim(), collections, gate, hold, watch };
  // It goes on when its caller leaves, and its own page follows it: the first answer is enough.
  for await (const { promotion } of trainer.promote(asked, { signal })) {
    if (promotion) return promotion.id;
  }
  return "";
}

export function PromotionForm(props: { version: string }) {
  const { version } = props;
  const { value: wish, set, drop } = useDraft(`promotion of ${version}`, FIRST);
  const promote = useDoing(async (signal, wanted: Wish) => {
    const id = await begin(version, wanted, signal);
    drop();
    location.hash = to("training", { promotion: id });
  });
  const submit = (event: Event): void => {
    event.preventDefault();
    promote.run(wish);
  };
  return (
    <form onSubmit={submit} aria-label="Promote">
      <div class="row top">
        <label>
          Most that any served size may lose
          <input
            type="number"
            min="0"
            max="1"
            step="any"
            required
            value={wish.maxDrop}
            onInput={(event) => set({ maxDrop: event.currentTarget.value })}
          />
        </label>
        <label class="wide">
          Slices that must not lose either, one a line
          <textarea rows={2} value={wish.slices} onInput={(event) => set({ slices: event.currentTarget.value })} />
        </label>
        <label>
          Fewest queries to judge by
          <input
            type="number"
            min="1"
            required
            value={wish.minQueries}
            onInput={(event) => set({ minQueries: event.currentTarget.value })}
          />
        </label>
        <label>
          The encoder's name to move
          <input
            value={wish.encoderAlias}
            placeholder="none"
            onInput={(event) => set({ encoderAlias: event.currentTarget.value })}
          />
        </label>
      </div>
      <Targets chosen={wish.collections} onChosen={(collections) => set({ collections })} />
      <fieldset class="row">
        <legend>When it is ready</legend>
        <label class="check">
          <input type="checkbox" checked={wish.hold} onChange={(event) => set({ hold: event.currentTarget.checked })} />
          Wait for me before it switches
        </label>
        <label class="check">
          <input type="checkbox" checked={wish.watch} onChange={(event) => set({ watch: event.currentTarget.checked })} />
          Keep the way back open until I finish it
        </label>
      </fieldset>
      <Alert problem={promote.problem} />
      <button type="submit" disabled={promote.isRunning} aria-busy={promote.isRunning}>
        Promote
      </button>
    </form>
  );
}

function Targets(props: { chosen: readonly string[]; onChosen: (aliases: string[]) => void }) {
  const { chosen } = props;
  const collections = useLoad((signal) => router.listCollections({}, { signal }), []);
  const choose = (alias: string, isChosen: boolean): void =>
    props.onChosen(isChosen ? [...chosen, alias] : chosen.filter((one) => one !== alias));
  return (
    <fieldset>
      <legend>Collections' aliases to move</legend>
      <Await of={collections}>
        {(listed) => {
          const aliases = listed.collections.flatMap((one) => one.aliases.map((alias) => ({ alias, name: one.name })));
          if (!aliases.length) {
            return <p class="soft">No collection has an alias, which alone can be moved: <a href={to("models")}>point one at it</a> first.</p>;
          }
          return aliases.map(({ alias, name }) => (
            <label key={alias} class="check">
              <input
                type="checkbox"
                checked={chosen.includes(alias)}
                onChange={(event) => choose(alias, event.currentTarget.checked)}
              />
              {alias}, now {name}
            </label>
          ));
        }}
      </Await>
    </fieldset>
  );
}
