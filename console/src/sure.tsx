// A button for what cannot be taken back: it asks once more, in its own place.

import { useEffect, useRef, useState } from "preact/hooks";

export function Sure(props: { label: string; question: string; isRunning: boolean; onSure: () => void }) {
  const [isAsking, setIsAsking] = useState(false);
  const yes = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (isAsking) yes.current?.focus();
  }, [isAsking]);
  if (!isAsking) {
    return (
      <button class="quiet" disabled={props.isRunning} onClick={() => setIsAsking(true)}>
        {props.label}
      </button>
    );
  }
  const go = (): void => {
    setIsAsking(false);
    props.onSure();
  };
  return (
    <span class="sure" role="group" aria-label={props.question}>
      {props.question}
      <button ref={yes} onClick={go}>
        {props.label}
      </button>
      <button class="quiet" onClick={() => setIsAsking(false)}>
        No
      </button>
    </span>
  );
}
