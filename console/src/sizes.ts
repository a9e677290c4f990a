// What a collection's sizes cost.

import { type Collection, Quantization, type Size } from "../gen/router_pb";

import { low } from "./words";

export interface SizeCost {
  /** "float32", "int8", "turbo4", ... */
  codes: string;
  /** Bytes in memory for each vector: codes and links. */
  bytes: number;
}

/** Return what a size takes. */
export function sizeMemory(collection: Collection, size: Size): SizeCost {
  const at = collection.sizes.indexOf(size);
  const memory = collection.memory[at];
  const codes = size.quantization ? low(Quantization[size.quantization]) : "float32";
  return { codes, bytes: (memory?.vectorBytes ?? 0) + (memory?.graphBytes ?? 0) };
}
