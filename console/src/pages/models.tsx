// What runs: the services, the models and the collections.

import { Collections } from "../collections";
import { Health } from "../health";
import { useLoad } from "../load";
import { Models } from "../models";
import { encoder, router, trainer } from "../services";

const LOOK_S = 5;

export function ModelsPage(_: { settings: URLSearchParams }) {
  const models = useLoad((signal) => encoder.listModels({}, { signal }), [], LOOK_S);
  const collections = useLoad((signal) => router.listCollections({}, { signal }), [], LOOK_S);
  const jobs = useLoad((signal) => trainer.listJobs({ limit: 1 }, { signal }), [], LOOK_S);
  return (
    <>
      <section class="card" aria-label="Services">
        <h2>Services</h2>
        <Health
          services={[
            ["Encoder", models],
            ["Router", collections],
            ["Trainer", jobs],
          ]}
        />
      </section>
      <section>
        <h2>Models</h2>
        <Models of={models} />
      </section>
      <section>
        <h2>Collections</h2>
        <Collections of={collections} />
      </section>
    </>
  );
}
