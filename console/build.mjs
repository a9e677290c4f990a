// Builds the page into the package: one script, one stylesheet, one document.
//
// Whether what is committed is current is checked without Node, by the digest of all sources that
// the document carries; so a build of the same sources must give the same bytes.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";

const out = process.argv[2] ?? "../services/router/static";

/** Every file that the page is made of, in an order that does not depend on the disk's. */
async function sources() {
  const found = [];
  for (const folder of ["src", "../protos"]) {
    const inside = await readdir(folder, { recursive: true, withFileTypes: true });
    found.push(...inside.filter((one) => one.isFile()).map((one) => path.join(one.parentPath, one.name)));
  }
  return [...found, "build.mjs", "package.json", "package-lock.json"].sort();
}

const digest = createHash("sha256");
for (const file of await sources()) {
  digest.update(file.replaceAll(path.sep, "/") + "\0");
  digest.update(await readFile(file));
}
await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
await build({
  entryPoints: ["src/main.tsx", "src/app.css"].map((file) => ({ in: file, out: "app" })),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "eof",
  external: ["/console/*"],
  outdir: out,
});
await copyFile("src/icon.svg", path.join(out, "icon.svg"));
const page = await readFile("src/index.html", "utf8");
await writeFile(path.join(out, "index.html"), page.replace("DIGEST", digest.digest("hex")));
