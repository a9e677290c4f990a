// What live searches keep of the exact hits: the worst slices first, over time, and what is lost to what.

import type { Collection, SliceRecall } from "../../gen/router_pb";
import { OfCollection } from "../collection";
import { History } from "../history";
import { useLoad } from "../load";
import { LostSearches } from "../lost";
import { Await, Empty } from "../notices";
import { change, to } from "../place";
import { Legend, series } from "../series";
import { router } from "../services";
import { CAUSES, sliceName, worstFirst } from "../slices";
import { type Column, Table } from "../table";
import { count, share, time } from "../words";

const EVERY_S = 5;
// So few that what is told of the chosen one stays near.
const SLICES = 10;

export function RecallPage(props: { settings: URLSearchParams }) {
  // With a mark before its name, as "" is a slice too: of searches that name none.
  const chosen = props.settings.get("slice")?.slice(1);
  return (
    <OfCollection settings={props.settings} forget={{ slice: "" }}>
      {(collection) => <Slices key={collection.name} collection={collection} chosen={chosen} />}
    </OfCollection>
  );
}

function Slices(props: { collection: Collection; chosen: string | undefined }) {
  const { name } = props.collection;
  const answer = useLoad((signal) => router.getRecall({ collection: name }, { signal }), [], EVERY_S);
  return (
    <Await of={answer}>
      {({ slices, since }) => {
        const sorted = worstFirst(slices);
        const slice = sorted.find((one) => one.slice === props.chosen) ?? sorted[0];
        return (
          <>
            <p>
              This router has been watching since {time(since)}; it begins anew with the first search after a
              calibration of the collection. Some live searches are repeated exactly, off their way.
            </p>
            {slice ? (
              <>
                <SliceTable slices={sorted} chosen={slice.slice} />
                <OneSlice key={slice.slice} collection={name} slice={slice.slice} />
              </>
            ) : (
              <Empty title="No search was seen yet">
                <p>
                  <a href={to("search", { collection: name })}>Search in it</a>, here or from an application; of each
                  slice the first searches are all measured.
                </p>
              </Empty>
            )}
          </>
        );
      }}
    </Await>
  );
}

function SliceTable(props: { slices: readonly SliceRecall[]; chosen: string }) {
  const { slices, chosen } = props;
  const most = Math.max(0.001, ...slices.map(lost));
  const columns: Column<SliceRecall>[] = [
    {
      title: "Slice",
      cell: (row) => (
        <button
          class="link"
          aria-pressed={row.slice === chosen}
          onClick={() => change({ slice: `=${row.slice}` })}
        >
          {sliceName(row.slice)}
        </button>
      ),
      by: (row) => row.slice,
    },
    { title: "Alarm", cell: (row) => <Alarm row={row} /> },
    {
      title: "Mean",
      isNumber: true,
      cell: (row) => (row.numMeasured ? share(row.mean) : ""),
      by: (row) => row.mean,
    },
    {
      title: "At 95 %",
      isNumber: true,
      cell: (row) => (
        <span class="steady">{row.numMeasured > 0 && `${share(row.lower)} to ${share(row.upper)}`}</span>
      ),
      by: (row) => row.lower,
    },
    {
      title: "Target",
      isNumber: true,
      cell: (row) => (row.recallTarget === undefined ? "" : share(row.recallTarget)),
      by: (row) => row.recallTarget ?? 0,
    },
    { title: "Searches", isNumber: true, cell: (row) => count(row.numSearches), by: (row) => Number(row.numSearches) },
    { title: "Measured", isNumber: true, cell: (row) => count(row.numMeasured), by: (row) => Number(row.numMeasured) },
    { title: "Where hits are lost", cell: (row) => <Losses row={row} most={most} /> },
    ...CAUSES.map(([cause, of]) => ({
      title: `To ${cause}`,
      isNumber: true,
      cell: (row: SliceRecall) => (row.numMeasured ? lossWords(of(row)) : ""),
      by: of,
    })),
  ];
  return (
    <>
      <Legend names={CAUSES.map(([cause]) => `lost to ${cause}`)} />
      <Table
        caption="Live searches by slice, the worst first"
        rows={slices}
        id={(row) => row.slice}
        columns={columns}
        most={SLICES}
      />
    </>
  );
}

function Alarm(props: { row: SliceRecall }) {
  if (props.row.alarm) return <strong class="bad">below its target</strong>;
  return props.row.recallTarget === undefined ? <span class="soft">no target</span> : <span class="good">no</span>;
}

/** Sums may miss 0 by a hair; "-0.0000" would look like something. */
function lossWords(value: number): string {
  return (Number(value.toFixed(4)) || 0).toFixed(4);
}

function lost(row: SliceRecall): number {
  return CAUSES.reduce((sum, [, of]) => sum + Math.max(0, of(row)), 0);
}

/** A bar of what is lost to each cause; its numbers stand beside it. */
function Losses(props: { row: SliceRecall; most: number }) {
  const { row, most } = props;
  let from = 0;
  return (
    <svg class="losses" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
      {CAUSES.map(([cause, of], at) => {
        const width = (Math.max(0, of(row)) / most) * 100;
        const x = from;
        from += width;
        return <rect key={cause} class={series(at)} x={x} width={width} height="8" fill="currentColor" />;
      })}
    </svg>
  );
}

function OneSlice(props: { collection: string; slice: string }) {
  const { collection, slice } = props;
  const answer = useLoad(
    (signal) => router.getRecall({ collection, historyOf: slice }, { signal }),
    [],
    EVERY_S,
  );
  return (
    <>
      <h2>{slice ? `The slice ${slice} over time` : "Searches without a slice over time"}</h2>
      <Await of={answer}>
        {({ slices }) => {
          const seen = slices.find((one) => one.slice === slice);
          return seen && <History slice={seen} />;
        }}
      </Await>
      <h2>Searches that lost hits</h2>
      <LostSearches collection={collection} slice={slice} />
    </>
  );
}
