// Colours of several things in one picture, by their place; the stylesheet says which.

const COLOURS = 6;

/** Return the class of the thing at a place, from 0. */
export function series(at: number): string {
  return `series-${(at % COLOURS) + 1}`;
}

export function Legend(props: { names: readonly string[] }) {
  return (
    <ul class="legend">
      {props.names.map((name, at) => (
        <li key={name}>
          <svg class={series(at)} width="12" height="12" aria-hidden="true">
            <rect width="12" height="12" fill="currentColor" />
          </svg>
          {name}
        </li>
      ))}
    </ul>
  );
}
