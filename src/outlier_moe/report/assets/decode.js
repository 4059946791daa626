// Blobs of the page: base64, deflated; JSON or streams of whole numbers in planes of bytes (edge_counts/coding.py).

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const opened = new Map();

// The JSON of a blob, read once.
function blob(name) {
  if (!opened.has(name)) {
    const element = document.querySelector(`script[data-blob="${CSS.escape(name)}"]`);
    opened.set(
      name,
      element === null
        ? Promise.resolve(null)
        : inflate(element.textContent).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))),
    );
  }
  return opened.get(name);
}

function json(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function streamsOf(layout, bytes) {
  const streams = {};
  let start = 0;
  for (const { name, length, width } of layout) {
    const Kind = [null, Uint8Array, Uint16Array][width] ?? Float64Array;
    const values = new Kind(length);
    for (let plane = 0, unit = 1; plane < width; plane++, unit *= 256) {
      for (let i = 0; i < length; i++) values[i] += unit * bytes[start++];
    }
    streams[name] = values;
  }
  return streams;
}

// Points sorted by layers, then positions, from their differences; positions start anew where the layers change.
function summed(layerSteps, positionSteps) {
  const layers = new Uint16Array(layerSteps.length);
  const positions = new Uint32Array(layerSteps.length);
  let layer = 0;
  let position = 0;
  for (let i = 0; i < layers.length; i++) {
    if (layerSteps[i] > 0) position = 0;
    layer += layerSteps[i];
    position += positionSteps[i];
    layers[i] = layer;
    positions[i] = position;
  }
  return { layers, positions };
}

function readRows(streams) {
  const edges = [];
  let start = 0;
  let below = null;
  for (const n of streams.n_rows) {
    const layers = new Uint16Array(n);
    const positions = new Uint32Array(n);
    for (let i = 0; i < n; i++) {
      layers[i] = below === null ? streams.layers[start + i] : below.layers[i] - streams.layers[start + i];
      positions[i] = below === null ? streams.positions[start + i] : below.positions[i] - streams.positions[start + i];
    }
    below = { layers, positions, lost: lostOf(streams, start, n) };
    edges.push(below);
    start += n;
  }
  return edges;
}

function readPairs(streams) {
  const edges = [];
  let start = 0;
  for (const n of streams.n_rows) {
    const end = start + n;
    const { layers, positions } = summed(streams.layers.subarray(start, end), streams.positions.subarray(start, end));
    edges.push({ layers, positions, lost: lostOf(streams, start, n) });
    start = end;
  }
  return edges;
}

function lostOf(streams, start, n) {
  return {
    layers: streams.layers_lost.subarray(start, start + n),
    positions: streams.positions_lost.subarray(start, start + n),
  };
}

function readStaircases(streams, prefix) {
  const edges = [];
  let start = 0;
  for (const n of streams[`${prefix}_n_points`] ?? []) {
    const end = start + n;
    const points = summed(
      streams[`${prefix}_layers`].subarray(start, end),
      streams[`${prefix}_positions`].subarray(start, end),
    );
    edges.push({ ...points, isCorner: streams[`${prefix}_is_corner`].subarray(start, end) });
    start = end;
  }
  return edges;
}

function floatsOf(bits) {
  return new Float32Array(Uint32Array.from(bits).buffer);
}

// The counts of one model for one shape of preset (view, layers, unit), as `StoredCounts` has them.
async function edgeCounts(document_) {
  const streams = streamsOf(document_.layout, await inflate(document_.deflated));
  const isPooled = document_.unit === "feature";
  return {
    ...document_,
    isPooled,
    edges: isPooled ? readRows(streams) : readPairs(streams),
    feature: streams.feature ?? null,
    peak: isPooled ? [floatsOf(streams.peak_bits ?? []), floatsOf(streams.later_peak_bits ?? [])] : null,
    staircases: isPooled ? null : [readStaircases(streams, "included"), readStaircases(streams, "excluded")],
  };
}
