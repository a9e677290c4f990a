// Tables that stay quick with many thousands of rows: one page of them is there at a time.

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

import { usePart } from "./part";

const MOST_ROWS = 50;

export interface Column<T> {
  title: string;
  cell: (row: T) => ComponentChildren;
  /** What to sort by; absent: the column cannot be sorted. */
  by?: (row: T) => number | string;
  isNumber?: boolean;
}

function compare(one: number | string, other: number | string): number {
  return one < other ? -1 : one > other ? 1 : 0;
}

export function Table<T>(props: {
  caption: string;
  columns: readonly Column<T>[];
  rows: readonly T[];
  id: (row: T) => string;
  /** Rows at a time. */
  most?: number;
}) {
  const { columns, rows, most = MOST_ROWS } = props;
  const [order, setOrder] = useState<{ at: number; isDown: boolean }>();
  const by = order && columns[order.at]?.by;
  const sorted = by
    ? [...rows].sort((one, other) => compare(by(one), by(other)) * (order.isDown ? -1 : 1))
    : rows;
  const { shown, turn } = usePart(sorted, most);
  const sortBy = (at: number): void =>
    setOrder(order?.at === at && !order.isDown ? { at, isDown: true } : { at, isDown: false });
  return (
    <div class="table" role="region" aria-label={props.caption} tabIndex={0}>
      <table>
        <caption>{props.caption}</caption>
        <thead>
          <tr>
            {columns.map((column, at) => (
              <th
                key={column.title}
                scope="col"
                class={column.isNumber ? "number" : undefined}
                aria-sort={order?.at === at ? (order.isDown ? "descending" : "ascending") : undefined}
              >
                {column.by ? <button onClick={() => sortBy(at)}>{column.title}</button> : column.title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {shown.map((row) => (
            <tr key={props.id(row)}>
              {columns.map((column) => (
                <td key={column.title} class={column.isNumber ? "number" : undefined}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {turn}
    </div>
  );
}
