// A job's events as they come; the stream is opened again where it broke.

import { Code } from "@connectrpc/connect";
import { useEffect, useState } from "preact/hooks";

import type { Event } from "../../gen/trainer_pb";
import { noted } from "../load";
import { type Problem, trainer } from "../services";

export interface Watched {
  events: readonly Event[];
  /** Why there is no stream just now. */
  problem?: Problem | undefined;
  /** The job has ended: no more will come. */
  isOver: boolean;
}

const AGAIN_MS = 2000;
// Many events at once, as at the beginning, are shown at once.
const SHOW_MS = 100;
// Asking again would be answered the same. A stream that was cut may come with any other code.
const FINAL = new Set([Code.NotFound, Code.PermissionDenied, Code.Unauthenticated, Code.Unimplemented]);

function rest(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Collect a job's events until it ends, and tell of each change. */
async function follow(id: string, signal: AbortSignal, tell: (watched: Watched) => void): Promise<void> {
  const events: Event[] = [];
  while (!signal.aborted) {
    try {
      const after = events.at(-1)?.number ?? 0n;
      for await (const { event } of trainer.watchJob({ id, after }, { signal })) {
        if (event) events.push(event);
        tell({ events, isOver: false });
      }
      return tell({ events, isOver: true });
    } catch (reason) {
      if (signal.aborted) return;
      const problem = noted(reason);
      tell({ events, problem, isOver: false });
      if (FINAL.has(problem.code)) return;
      await rest(AGAIN_MS);
    }
  }
}

/** Watch a job as long as it is looked at. */
export function useEvents(id: string): Watched {
  const [watched, setWatched] = useState<Watched>({ events: [], isOver: false });
  useEffect(() => {
    const controller = new AbortController();
    let timer: number | undefined;
    let latest: Watched;
    const show = (): void => {
      timer = undefined;
      setWatched({ ...latest, events: [...latest.events] });
    };
    void follow(id, controller.signal, (now) => {
      latest = now;
      timer ??= setTimeout(show, SHOW_MS);
    });
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [id]);
  return watched;
}
