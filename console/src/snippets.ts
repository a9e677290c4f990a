// The same search as code to copy.

import { create, toJson } from "@bufbuild/protobuf";

import { SearchRequestSchema } from "../gen/router_pb";

export interface Snippet {
  title: string;
  text: string;
}

const PATH = "matryoshka.v1.RouterService/Search";
const KEY = "$MATRYOSHKA_API_KEY";

/** Return a search as a command and as code of OpenAI's package. */
export function snippets(request: Parameters<typeof create<typeof SearchRequestSchema>>[1]): Snippet[] {
  const body = toJson(SearchRequestSchema, create(SearchRequestSchema, request));
  const json = JSON.stringify(body, null, 2);
  // A quote ends the shell's quoting; a quote of its own goes between.
  const quoted = json.replaceAll("'", `'"'"'`);
  const curl = `curl ${location.origin}/${PATH} \\
  -H 'content-type: application/json' \\
  -H "authorization: Bearer ${KEY}" \\
  -d '${quoted}'`;
  const python = `import json
import os

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(location.origin)}, api_key=os.environ["MATRYOSHKA_API_KEY"])
search = json.loads(r'''${json.replaceAll("'''", "\\u0027\\u0027\\u0027")}''')
found = client.post("/${PATH}", cast_to=object, body=search)
for hit in found["hits"]:
    print(hit["score"], hit["id"])`;
  return [
    { title: "This search with curl", text: curl },
    { title: "This search with OpenAI's Python package", text: python },
  ];
}
