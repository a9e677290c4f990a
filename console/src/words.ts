// Numbers and names as people read them.

/** Bytes with a unit of a thousand: "1.5 kB". */
export function bytes(count: number | bigint): string {
  let value = Number(count);
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return `${value < 10 && unit !== "B" ? value.toFixed(1) : Math.round(value)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} TB`;
}

/** Milliseconds, two digits that count. */
export function ms(value: number): string {
  return `${value < 1 ? value.toFixed(2) : value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** A share of one: "0.987". */
export function share(value: number): string {
  return value.toFixed(3);
}

export function count(value: number | bigint): string {
  return value.toLocaleString("en");
}

/** A Unix time in seconds. */
export function time(seconds: number | bigint): string {
  const value = Number(seconds);
  return value ? new Date(value * 1000).toLocaleString() : "";
}

/** "TURBO4" of an enum's name as "turbo4". */
export function low(name: string | undefined): string {
  return (name ?? "").toLowerCase();
}

/** A size as the services name it: "64", "64 nested". */
export function size(dim: number, nested: boolean): string {
  return nested ? `${dim} nested` : `${dim}`;
}

/** "ROLLED_BACK" of an enum's name as "rolled back". */
export function spoken(name: string | undefined): string {
  return low(name).replaceAll("_", " ");
}

/** How far a share moved: "+0.012"; "0.000" has no sign. */
export function moved(value: number): string {
  const far = share(Math.abs(value));
  return far === share(0) ? far : `${value < 0 ? "−" : "+"}${far}`;
}

/** Seconds of work: "12 s", "3 min", "2.5 h". */
export function duration(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
