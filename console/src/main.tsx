// The console: a bar of pages, the page that the address names, and the question for a key.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import { KeyDialog } from "./key";
import { onRefused } from "./load";
import { ModelsPage } from "./pages/models";
import { PlanPage } from "./pages/plan";
import { RecallPage } from "./pages/recall";
import { SearchPage } from "./pages/search";
import { TrainingPage } from "./pages/training";
import { to, usePlace } from "./place";
import { key } from "./services";
import { ThemeButton } from "./theme";

const PAGES = {
  search: ["Search", SearchPage],
  plan: ["Plan", PlanPage],
  recall: ["Recall", RecallPage],
  training: ["Training", TrainingPage],
  models: ["Models and collections", ModelsPage],
} as const;

type PageName = keyof typeof PAGES;

function isPage(name: string): name is PageName {
  return Object.hasOwn(PAGES, name);
}

function App() {
  const place = usePlace();
  const [asking, setAsking] = useState<"wanted" | "refused">();
  const [round, setRound] = useState(0);
  useEffect(() => onRefused(() => setAsking("refused")), []);
  const name: PageName = isPage(place.page) ? place.page : "search";
  const [title, Page] = PAGES[name];
  useEffect(() => {
    document.title = `${title} · Matryoshka`;
  }, [title]);
  const entered = (): void => {
    setAsking(undefined);
    setRound(round + 1);
  };
  return (
    <>
      <button class="skip" onClick={() => document.querySelector("main")?.focus()}>
        To the page
      </button>
      <header>
        <a class="brand" href={to("search")}>
          <img src="/console/icon.svg" alt="" width="24" height="24" />
          Matryoshka
        </a>
        <nav aria-label="Pages">
          {Object.entries(PAGES).map(([page, [label]]) => (
            <a key={page} href={to(page)} aria-current={page === name ? "page" : undefined}>
              {label}
            </a>
          ))}
        </nav>
        <ThemeButton />
        <button class="quiet" onClick={() => setAsking("wanted")}>
          {key.get() ? "Change key" : "Enter key"}
        </button>
      </header>
      <main tabIndex={-1}>
        <h1>{title}</h1>
        <Page key={`${name} ${round}`} settings={place.settings} />
      </main>
      {asking && (
        <KeyDialog isRefused={asking === "refused"} onEntered={entered} onClosed={() => setAsking(undefined)} />
      )}
    </>
  );
}

const root = document.getElementById("app");
if (root) render(<App />, root);
