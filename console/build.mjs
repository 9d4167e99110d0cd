// Bundle the console into the Python package: `node build.mjs`, `--check` (is the committed bundle fresh?), `--watch`.
import { build, context } from "esbuild";
import { copyFileSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const bundle = join(here, "..", "src", "synap", "server", "console", "bundle");
const LARGEST = 100_000; // bytes of everything a browser loads, gzipped
const copied = ["index.html", "icon.svg"];

const options = {
  absWorkingDir: here,
  entryPoints: { console: "src/main.tsx" },
  outdir: bundle,
  bundle: true,
  format: "esm",
  target: ["es2022", "chrome109", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  charset: "utf8",
  legalComments: "eof",
  logLevel: "warning",
};

if (process.argv.includes("--check")) {
  const stale = [];
  const built = await build({ ...options, write: false });
  const files = [
    ...built.outputFiles.map((file) => [file.path, Buffer.from(file.contents)]),
    ...copied.map((name) => [join(bundle, name), readFileSync(join(here, "src", name))]),
  ];
  let size = 0;
  for (const [path, contents] of files) {
    size += gzipSync(contents, { level: 9 }).length;
    let committed = Buffer.alloc(0);
    try {
      committed = readFileSync(path);
    } catch {
      // Missing is stale.
    }
    if (!committed.equals(contents)) stale.push(path);
  }
  if (stale.length) {
    console.error(`stale, run \`npm run build\` in console/:\n  ${stale.join("\n  ")}`);
    process.exit(1);
  }
  if (size > LARGEST) {
    console.error(`the console has ${size} bytes gzipped, ${LARGEST} are allowed`);
    process.exit(1);
  }
  console.log(`fresh: ${size} bytes gzipped`);
} else {
  mkdirSync(bundle, { recursive: true });
  for (const name of copied) copyFileSync(join(here, "src", name), join(bundle, name));
  if (process.argv.includes("--watch")) await (await context(options)).watch();
  else await build(options);
}
