// A file of the user's: chosen, or dropped on the field.

import { useEffect, useRef, useState } from "preact/hooks";

import { bytes } from "./words";

export function FileField(props: {
  label: string;
  hint: string;
  isRequired?: boolean;
  file: File | undefined;
  onFile: (file: File | undefined) => void;
}) {
  const input = useRef<HTMLInputElement>(null);
  const [isOver, setIsOver] = useState(false);
  // What was chosen before the page was built anew.
  useEffect(() => {
    if (!props.file || !input.current) return;
    const held = new DataTransfer();
    held.items.add(props.file);
    input.current.files = held.files;
  }, []);
  const drop = (event: DragEvent): void => {
    event.preventDefault();
    setIsOver(false);
    const files = event.dataTransfer?.files;
    if (!files?.length) return;
    // The field's own way to say which file it holds.
    if (input.current) input.current.files = files;
    props.onFile(files[0]);
  };
  return (
    <label
      class={isOver ? "drop over" : "drop"}
      onDragOver={(event) => {
        event.preventDefault();
        setIsOver(true);
      }}
      onDragLeave={() => setIsOver(false)}
      onDrop={drop}
    >
      {props.label}
      <input
        ref={input}
        type="file"
        required={props.isRequired ?? false}
        onChange={(event) => props.onFile(event.currentTarget.files?.[0])}
      />
      <span>{props.file ? bytes(props.file.size) : props.hint}</span>
    </label>
  );
}
