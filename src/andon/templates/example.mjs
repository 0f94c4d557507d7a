// Inspects PNG pictures with graph.onnx: one line of JSON for each.
//
//   npm install onnxruntime-node pngjs
//   node example.mjs picture.png ...
//
// Another picture format: decode it to RGB, or to gray, as spec.json says under "input".
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";
import { PNG } from "pngjs";

const spec = JSON.parse(readFileSync(new URL("spec.json", import.meta.url)));
const graph = readFileSync(new URL(spec.graph.file, import.meta.url));
if (createHash("sha256").update(graph).digest("hex") !== spec.graph.sha256) {
  throw new Error(`${spec.graph.file} and spec.json are not of one export. Export the bundle again.`);
}
const session = await ort.InferenceSession.create(graph);
const { name, type, shape } = spec.input;
const [height, width, channels] = shape;

// The samples of a PNG, (height, width, channels); alpha is dropped.
function samples(file) {
  const png = PNG.sync.read(readFileSync(file), { skipRescale: true });
  const found = `${png.width} x ${png.height}, ${png.color ? 3 : 1} channels, uint${png.depth === 16 ? 16 : 8}`;
  const expected = `${width} x ${height}, ${channels} channels, ${type}`;
  if (found !== expected) throw new Error(`${file}: ${found}; expected ${expected}`);
  const picture = type === "uint8" ? new Uint8Array(height * width * channels) : new Uint16Array(height * width * channels);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < channels; c++) picture[i * channels + c] = png.data[4 * i + c]; // pngjs gives RGBA
  }
  return picture;
}

for (const file of process.argv.slice(2)) {
  try {
    const { score, verdict, p_value } = await session.run({ [name]: new ort.Tensor(type, samples(file), shape) });
    const result = { verdict: spec.verdict.values[verdict.data[0]], score: score.data[0], p_value: p_value.data[0] };
    console.log(JSON.stringify({ source: file, ...result }));
  } catch (error) {
    console.error(`could not be inspected: ${error.message}`);
    process.exitCode = 1;
  }
}
