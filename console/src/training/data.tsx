// What was found in a job's data.

import { Fragment } from "preact";

import { DataKind, type DataReport } from "../../gen/trainer_pb";
import { count, spoken } from "../words";

/** What was left out or only told, and why; each is shown if there is any of it. */
const FOUND = [
  ["duplicates", "Duplicates, left out"],
  ["conflicts", "Contradictions, left out"],
  ["falseNegatives", "False negatives, left out"],
  ["leaks", "Leaks, left out of the training"],
  ["sharedDocuments", "Documents that training and validation share, kept"],
] as const;

export function Data(props: { report: DataReport }) {
  const { report } = props;
  const { tooLong } = report;
  return (
    <section>
      <h2>Data</h2>
      <dl>
        <dt>Kind</dt>
        <dd>{spoken(DataKind[report.kind])}</dd>
        <dt>Training examples</dt>
        <dd>
          {count(report.kept)} of {count(report.rows)} kept
        </dd>
        <dt>Validation</dt>
        <dd>
          {report.validationRows
            ? `${count(report.validationKept)} of ${count(report.validationRows)} kept`
            : "a part of the training examples is held out"}
        </dd>
        {FOUND.filter(([field]) => report[field]).map(([field, said]) => (
          <Fragment key={field}>
            <dt>{said}</dt>
            <dd>{count(report[field])}</dd>
          </Fragment>
        ))}
        {tooLong !== undefined && (
          <>
            <dt>Texts longer than the model reads</dt>
            <dd>{count(tooLong)}</dd>
          </>
        )}
      </dl>
      {report.leakPlaces.length > 0 && (
        <details>
          <summary>Where the first {report.leakPlaces.length} leaks stand</summary>
          <ul>
            {report.leakPlaces.map((place) => (
              <li key={place}>{place}</li>
            ))}
          </ul>
        </details>
      )}
    </section>
  );
}
