// Calls as state of a component: what is loaded, what is awaited, what went wrong.

import { Code } from "@connectrpc/connect";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";

import { type Problem, problemOf } from "./services";

/** Told when a call was refused for want of a key. */
const refused = new Set<() => void>();

/** Listen to calls that were refused for want of a key; returns how to stop. */
export function onRefused(listener: () => void): () => void {
  refused.add(listener);
  return () => void refused.delete(listener);
}

/** Return what to show of an error; whoever asks for keys is told, if it was for want of one. */
export function noted(reason: unknown): Problem {
  const problem = problemOf(reason);
  if (problem.code === Code.Unauthenticated) refused.forEach((listener) => listener());
  return problem;
}

const AWAY_S = 3;

export interface Loaded<T> {
  /** The last answer; it stays while another is awaited. */
  value?: T;
  problem?: Problem;
  isWaiting: boolean;
  reload: () => void;
}

/**
 * Ask when the component appears and whenever `on` changes; earlier calls are given up.
 *
 * @param everySeconds ask again after so long, as long as the page is looked at; 0: never.
 */
export function useLoad<T>(
  ask: (signal: AbortSignal) => Promise<T>,
  on: readonly unknown[],
  everySeconds = 0,
): Loaded<T> {
  const [state, setState] = useState<{ value?: T; problem?: Problem; isWaiting: boolean }>({
    isWaiting: true,
  });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const controller = new AbortController();
    setState((last) => ({ ...last, isWaiting: true }));
    ask(controller.signal).then(
      (value) => controller.signal.aborted || setState({ value, isWaiting: false }),
      (reason: unknown) =>
        controller.signal.aborted ||
        setState((last) => ({ value: last.value, problem: noted(reason), isWaiting: false })),
    );
    return () => controller.abort();
  }, [...on, turn]);
  const reload = useCallback(() => setTurn((last) => last + 1), []);
  // One that starts, or is started again, is there soon.
  const isAway = state.problem?.code === Code.Unavailable;
  useEffect(() => {
    if (!isAway) return;
    const timer = setInterval(() => document.hidden || reload(), AWAY_S * 1000);
    return () => clearInterval(timer);
  }, [isAway]);
  useEffect(() => {
    if (!everySeconds) return;
    const timer = setInterval(() => document.hidden || reload(), everySeconds * 1000);
    return () => clearInterval(timer);
  }, [everySeconds]);
  return { ...state, reload };
}

export interface Doing<A extends unknown[]> {
  run: (...given: A) => void;
  /** End it before its end. */
  stop: () => void;
  problem?: Problem;
  isRunning: boolean;
}

/** Something that a click begins: one at a time, ended when the component goes. */
export function useDoing<A extends unknown[]>(
  work: (signal: AbortSignal, ...given: A) => Promise<void>,
): Doing<A> {
  const [state, setState] = useState<{ problem?: Problem; isRunning: boolean }>({
    isRunning: false,
  });
  const running = useRef<AbortController | undefined>(undefined);
  const stop = useCallback(() => running.current?.abort(), []);
  useEffect(() => stop, []);
  const run = (...given: A): void => {
    stop();
    const controller = new AbortController();
    running.current = controller;
    setState({ isRunning: true });
    work(controller.signal, ...given).then(
      () => running.current === controller && setState({ isRunning: false }),
      (reason: unknown) => {
        if (running.current !== controller) return;
        const problem = controller.signal.aborted ? undefined : noted(reason);
        setState({ problem, isRunning: false });
      },
    );
  };
  return { run, stop, ...state };
}
