// The comparison's figures at any threshold, equal to those of filter_systematic and compare_models.

const FLOAT32_SHIFT = 20;

// How many edges of the ladder lie from a floor to a magnitude, both edges.
function edgeIndex(magnitude, floor) {
  const bits = new Uint32Array(Float32Array.of(magnitude, floor).buffer);
  return (bits[0] >>> FLOAT32_SHIFT) - (bits[1] >>> FLOAT32_SHIFT);
}

function medianOf(values, whole) {
  if (values.length === 0) return null;
  const sorted = values.slice().sort();
  const middle = sorted.length >> 1;
  if (sorted.length % 2) return sorted[middle] / whole;
  return (sorted[middle - 1] / whole + sorted[middle] / whole) / 2;
}

// The rule of judging/rule.py. side: 0 includes each sequence's first token, 1 leaves it out.
function isSystematic(layers, positions, counts, least, side) {
  return layers / counts.whole_layers >= least.layers && positions / counts.whole_positions[side] >= least.positions;
}

function systematicAt(counts, edge, thresholds, side) {
  const at = counts.edges[edge];
  if (at === undefined) return { rows: new Uint32Array(0), layers: new Uint16Array(0), positions: new Uint32Array(0) };
  const n = at.layers.length;
  const rows = new Uint32Array(n);
  const layers = new Uint16Array(n);
  const positions = new Uint32Array(n);
  let found = 0;
  for (let i = 0; i < n; i++) {
    const layer = at.layers[i] - (side ? at.lost.layers[i] : 0);
    const position = at.positions[i] - (side ? at.lost.positions[i] : 0);
    if (isSystematic(layer, position, counts, thresholds, side)) {
      rows[found] = i;
      layers[found] = layer;
      positions[found++] = position;
    }
  }
  return { rows: rows.subarray(0, found), layers: layers.subarray(0, found), positions: positions.subarray(0, found) };
}

function distinctAt(counts, edge, thresholds, side) {
  const at = counts.staircases[side][edge];
  if (at === undefined) return 0;
  let distinct = 0;
  for (let i = 0; i < at.layers.length; i++) {
    const found = isSystematic(at.layers[i], at.positions[i], counts, thresholds, side);
    if (found) distinct += at.isCorner[i] ? -1 : 1;
  }
  return distinct;
}

function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

// thresholds: {magnitude, layers, positions}
function figuresAt(counts, thresholds, side) {
  const edge = edgeIndex(thresholds.magnitude, counts.floor);
  const { rows, layers, positions } = systematicAt(counts, edge, thresholds, side);
  const n = rows.length;
  const whole = counts.whole_positions[side];
  const distinct = counts.isPooled ? n : distinctAt(counts, edge, thresholds, side);
  const peaks = counts.isPooled ? Float32Array.from(rows, (row) => counts.peak[side][row]) : null;
  return {
    n_systematic: distinct,
    d_model_share: distinct / counts.d_model,
    n_pairs: counts.isPooled ? null : n,
    layer_fraction_mean: n ? sum(layers) / (n * counts.whole_layers) : null,
    layer_fraction_median: medianOf(layers, counts.whole_layers),
    position_fraction_mean: n ? sum(positions) / (n * whole) : null,
    position_fraction_median: medianOf(positions, whole),
    peak_largest: peaks !== null && n ? peaks.reduce((a, b) => Math.max(a, b)) : null,
  };
}

// The count at every edge, up to the last that has a systematic feature.
function curveOf(counts, edges, thresholds, side) {
  const curve = [];
  for (const magnitude of edges) {
    const edge = edgeIndex(magnitude, counts.floor);
    const chosen = { ...thresholds, magnitude };
    const count = counts.isPooled
      ? systematicAt(counts, edge, chosen, side).rows.length
      : distinctAt(counts, edge, chosen, side);
    if (count === 0) break;
    curve.push({ magnitude, count });
  }
  return curve;
}

// The systematic features themselves, the largest peaks first; pooled presets only.
function featuresAt(counts, thresholds, side) {
  const found = systematicAt(counts, edgeIndex(thresholds.magnitude, counts.floor), thresholds, side);
  return Array.from(found.rows, (row, i) => ({
    feature: counts.feature[row],
    peak: counts.peak[side][row],
    layer_fraction: found.layers[i] / counts.whole_layers,
    position_fraction: found.positions[i] / counts.whole_positions[side],
  })).sort((a, b) => b.peak - a.peak || a.feature - b.feature);
}
