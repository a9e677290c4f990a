// What was promoted, or shall be.

import { type Promotion, PromotionState } from "../../gen/trainer_pb";
import { useLoad } from "../load";
import { Await } from "../notices";
import { Turn, usePager } from "../pager";
import { to } from "../place";
import { trainer } from "../services";
import { type Column, Table } from "../table";
import { spoken, time } from "../words";

const PAGE = 20;
const LOOK_S = 5;
const BAD = new Set([PromotionState.REFUSED, PromotionState.FAILED]);
const GOOD = new Set([PromotionState.DONE, PromotionState.WATCHING]);

/** A state in a word and a colour; the word alone is enough. */
export function Stand(props: { state: PromotionState }) {
  const { state } = props;
  const look = BAD.has(state) ? "bad" : GOOD.has(state) ? "good" : undefined;
  return <span class={look}>{spoken(PromotionState[state])}</span>;
}

const COLUMNS: Column<Promotion>[] = [
  { title: "Promotion", cell: (one) => <a href={to("training", { promotion: one.id })}>{one.id}</a> },
  { title: "Version", cell: (one) => one.version },
  { title: "Collections", cell: (one) => one.collections.join(", ") },
  { title: "State", cell: (one) => <Stand state={one.state} /> },
  { title: "Changed", cell: (one) => time(one.updatedAt) },
];

export function Promotions() {
  const pager = usePager();
  const { after } = pager;
  const promotions = useLoad((signal) => trainer.listPromotions({ limit: PAGE, after }, { signal }), [after], LOOK_S);
  return (
    <section>
      <h2>Promotions</h2>
      <Await of={promotions}>
        {(listed) =>
          listed.promotions.length || after ? (
            <>
              <Table caption="Promotions, newest first" rows={listed.promotions} id={(one) => one.id} columns={COLUMNS} />
              <Turn pager={pager} last={listed.promotions.at(-1)?.id} hasMore={listed.hasMore} />
            </>
          ) : (
            <p class="soft">Nothing has been promoted yet: open a version to begin.</p>
          )
        }
      </Await>
    </section>
  );
}
