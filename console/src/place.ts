// Where the user is: the page and its settings are in the address, so that they can be sent on.

import { useEffect, useState } from "preact/hooks";

export interface Place {
  page: string;
  settings: URLSearchParams;
}

function read(): Place {
  const [page = "", settings = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { page, settings: new URLSearchParams(settings) };
}

/** Return the address of a page. */
export function to(page: string, settings: Record<string, string> = {}): string {
  const written = new URLSearchParams(Object.entries(settings).filter(([, value]) => value));
  return `#/${page}${written.size ? `?${written}` : ""}`;
}

/** Change settings of this page; a step back leaves the page at once. */
export function change(settings: Record<string, string>): void {
  const place = read();
  for (const [name, value] of Object.entries(settings)) {
    if (value) place.settings.set(name, value);
    else place.settings.delete(name);
  }
  history.replaceState(null, "", to(place.page, Object.fromEntries(place.settings)));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** Follow the address. */
export function usePlace(): Place {
  const [place, setPlace] = useState(read);
  useEffect(() => {
    const follow = (): void => setPlace(read());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return place;
}
