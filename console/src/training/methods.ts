// Ways to train, and what each is for.

import { Head, Method } from "../../gen/trainer_pb";

export const METHODS = [
  [Method.ADAPTOR, "Adaptor", "A head on frozen vectors: minutes on a CPU, and stored vectors can follow it."],
  [Method.LORA, "LoRA", "Low-rank changes of the model's layers."],
  [Method.FULL, "Full", "All weights; slow without an accelerator."],
  [Method.STATIC, "Static table", "A table of token vectors, hundreds of times faster to serve."],
  [Method.DISTILL, "Distillation", "A model that gives its teacher's vectors at every size, from texts alone."],
  [Method.NEST, "Nesting", "A rotation of any model's vectors: give .npy files of vectors instead of texts."],
] as const;

export const HEADS = [
  [Head.ROTATION, "Rotation: the full size stays as it is"],
  [Head.DENSE, "Dense: may gain at the full size too"],
  [Head.RESIDUAL, "Residual: gains most, and stored vectors cannot follow without their texts"],
] as const;

/** The name of a method. */
export function methodName(method: Method | undefined): string {
  return METHODS.find(([one]) => one === (method || Method.ADAPTOR))?.[1] ?? "";
}
