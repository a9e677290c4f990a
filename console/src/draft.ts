// What was entered into a form stays when the page is built anew: with another key, for example.

import { useState } from "preact/hooks";

const drafts = new Map<string, unknown>();

export function hasDraft(name: string): boolean {
  return drafts.has(name);
}

export interface Draft<T> {
  value: T;
  set: (changed: Partial<T>) => void;
  /** It has been sent. */
  drop: () => void;
}

/** The fields of a form, by a name that no other form has. */
export function useDraft<T extends object>(name: string, first: T): Draft<T> {
  const [value, setValue] = useState<T>(() => (drafts.get(name) as T | undefined) ?? first);
  const set = (changed: Partial<T>): void =>
    setValue((last) => {
      const next = { ...last, ...changed };
      drafts.set(name, next);
      return next;
    });
  return { value, set, drop: () => void drafts.delete(name) };
}
