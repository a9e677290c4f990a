// Light or dark: as the system says, or as chosen here.

import { useEffect, useState } from "preact/hooks";

const KEY = "matryoshka.theme";

export function ThemeButton() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [theme, setTheme] = useState(localStorage.getItem(KEY) ?? system);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
  }, [theme]);
  const other = theme === "dark" ? "light" : "dark";
  const turn = (): void => {
    localStorage.setItem(KEY, other);
    setTheme(other);
  };
  return (
    <button class="quiet" onClick={turn} aria-label={`Show this page ${other}`} title={`Show this page ${other}`}>
      {theme === "dark" ? "☀" : "☾"}
    </button>
  );
}
