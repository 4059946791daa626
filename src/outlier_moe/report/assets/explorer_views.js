// What the explorer shows for its thresholds: a table, a mark a model, the curves, the features of one model.

const COLUMNS = STUDY.columns;

function written(value, style) {
  if (value === null || value === undefined) return "–";
  switch (style) {
    case "count":
      return value.toLocaleString("en-US");
    case "percent":
      return (100 * value).toFixed(1);
    case "magnitude":
      return value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
    case "decimal":
      return value.toFixed(2);
    default:
      return String(value);
  }
}

function fillTable(results) {
  const body = document.querySelector("#explorer-table tbody");
  body.replaceChildren(
    ...results.map(({ model, figures }) => {
      const row = document.createElement("tr");
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = model.model;
      name.dataset.sort = model.model;
      row.append(name, kindCell(model.kind));
      for (const { name: figure, style } of COLUMNS) {
        const value = { ...model, ...(figures ?? {}) }[figure] ?? null;
        const cell = document.createElement("td");
        cell.className = "number";
        cell.textContent = written(value, style);
        cell.dataset.model = model.model;
        cell.dataset.figure = figure;
        cell.dataset.value = value === null ? "" : String(value);
        cell.dataset.sort = value === null ? "" : String(value);
        row.append(cell);
      }
      return row;
    }),
  );
  const table = document.getElementById("explorer-table");
  // Figures that no shown model has (pairs, where sequences are pooled) need no column.
  COLUMNS.forEach(({ name }, k) => {
    const isEmpty = results.every(({ figures }) => (figures?.[name] ?? null) === null);
    for (const row of table.rows) row.cells[k + 2].hidden = isEmpty;
  });
  sortAgain(table);
}

function kindCell(kind) {
  const cell = document.createElement("td");
  const badge = document.createElement("span");
  badge.className = `kind ${kind}`;
  badge.textContent = kind === "moe" ? "MoE" : kind;
  cell.dataset.sort = kind;
  cell.append(badge);
  return cell;
}

const QUANTITIES = STUDY.quantities;
let scatter = null;
let curves = null;

// What decides, beside the axes, whether a chart can stay and only its marks move.
function look() {
  return [currentTheme(), document.getElementById("explorer-scatter").clientWidth, ...state.models];
}

function redrawExplorer() {
  if (STUDY.models.length) update();
}

// Decades where enough of them lie on the axis, else finer ones, as plots/scales.py has them.
function ticksOf(kind, [low, high]) {
  for (const [least, ticks] of STUDY.ticks[kind]) {
    const within = ticks.filter((tick) => tick >= low && tick <= high);
    if (within.length >= least) return within;
  }
}

function patched(spec, channel, { title, scale, domain, ticks }) {
  const copy = structuredClone(spec);
  for (const layer of copy.layer) {
    const encoding = layer.encoding?.[channel];
    if (!encoding || encoding.field === undefined) continue;
    encoding.title = title;
    encoding.scale = { ...encoding.scale, type: scale, domain };
    encoding.axis = { ...encoding.axis, values: ticks };
    if (ticks === undefined) delete encoding.axis.values;
  }
  for (const layer of copy.layer) {
    for (const tooltip of layer.encoding?.tooltip ?? []) {
      if (tooltip.field === channel) tooltip.title = title;
    }
  }
  return copy;
}

function axisOf(quantity, values) {
  const { title, scale, is_fraction } = QUANTITIES[quantity];
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  if (is_fraction) return { title, scale, domain: [0, 105] };
  if (scale === "log") {
    const [low, high] = known.length ? [Math.min(...known), Math.max(...known)].map(Math.log) : [0, 2];
    const margin = high > low ? Math.max(0.14 * (high - low), 0.12) : 1.2;
    const domain = [Math.exp(low - margin), Math.exp(high + margin)];
    return { title, scale, domain, ticks: ticksOf(scale, domain) };
  }
  const top = Math.expm1(Math.log1p(Math.max(1, ...known)) * 1.14);
  return { title, scale, domain: [0, top], ticks: ticksOf(scale, [0, top]) };
}

function pointsOf(results) {
  const factor = (name) => (QUANTITIES[name].is_fraction ? 100 : 1);
  return results.flatMap(({ model, figures }) => {
    const both = { ...model, ...(figures ?? {}) };
    if (both[state.x] === null || both[state.y] === null || both[state.y] === undefined) return [];
    const { kind, family } = model;
    const x = both[state.x] * factor(state.x);
    return [{ model: model.model, kind, family, x, y: both[state.y] * factor(state.y), low: null, high: null }];
  });
}

// The most features that any shown model has at the lowest magnitude: an axis that stays while sliders move.
async function mostFeatures() {
  const preset = BY_PRESET.get(state.preset);
  if (preset.shape === null) return 1;
  const counts = await Promise.all(shownModels().map((model) => storedCounts(model.model, preset.shape)));
  const lowest = { ...thresholdsOf(preset), magnitude: STUDY.stops.magnitude[0] };
  const loosest = { ...lowest, layers: STUDY.stops.layers[0], positions: STUDY.stops.positions[0] };
  const figure = state.y === "n_pairs" ? "n_pairs" : "n_systematic";
  return Math.max(1, ...counts.map((found) => (found && figuresAt(found, loosest, state.side)[figure]) ?? 0));
}

// Why no model has a mark for the chosen figures.
function whyNoMarks(results) {
  if (results.length === 0) return "No model is chosen.";
  for (const name of [state.x, state.y]) {
    if (results.every(({ model, figures }) => ({ ...model, ...(figures ?? {}) })[name] == null)) {
      return `No model shown has ${QUANTITIES[name].title} by this definition at these thresholds.`;
    }
  }
  return "No model shown has both figures.";
}

async function drawScatter(results) {
  const element = document.getElementById("explorer-scatter");
  const points = pointsOf(results);
  if (points.length === 0) {
    scatter = null;
    say(element, whyNoMarks(results));
    return;
  }
  const key = [state.x, state.y, state.preset, state.side, ...look()].join("|");
  if (scatter?.key !== key) {
    const isCount = ["n_systematic", "n_pairs"].includes(state.y);
    const x = axisOf(state.x, points.map((point) => point.x));
    const y = axisOf(state.y, isCount ? [await mostFeatures()] : points.map((point) => point.y));
    const spec = patched(patched(STUDY.templates.scatter, "x", x), "y", y);
    scatter = { key, view: await draw(element, spec), meta: spec.usermeta.labels };
  }
  await scatter.view.data("points", points).runAsync();
  await relabel(scatter.view, scatter.meta);
}

async function drawCurves() {
  const preset = BY_PRESET.get(state.preset);
  const element = document.getElementById("explorer-curves");
  element.closest("figure").hidden = preset.shape === null;
  if (preset.shape === null) return;
  const thresholds = thresholdsOf(preset);
  const models = shownModels();
  const found = await Promise.all(models.map((model) => storedCounts(model.model, preset.shape)));
  const rows = models.flatMap(({ model, kind }, k) =>
    found[k] === null
      ? []
      : curveOf(found[k], STUDY.stops.magnitude, thresholds, state.side).map(({ magnitude, count }) => ({
          model,
          kind,
          x: magnitude,
          y: count,
        })),
  );
  if (rows.length === 0) {
    curves = null;
    say(element, models.length ? "No model shown has a systematic feature at any magnitude." : "No model is chosen.");
    return;
  }
  const ends = [...new Map(rows.map((row) => [row.model, row])).values()];
  const key = [state.preset, state.layers, state.positions, state.side, ...look()].join("|");
  if (curves?.key !== key) {
    const last = Math.max(2 * STUDY.stops.magnitude[0], ...rows.map((row) => row.x)) * 1.5;
    const domain = [STUDY.stops.magnitude[0], last];
    const x = { title: "threshold |x| ≥", scale: "log", domain, ticks: ticksOf("log", domain) };
    const y = axisOf("n_systematic", [1, ...rows.map((row) => row.y)]);
    const spec = patched(patched(STUDY.templates.curves, "x", x), "y", y);
    curves = { key, view: await draw(element, spec), meta: spec.usermeta.labels };
  }
  curves.view.data("curves", rows).data("points", ends).data("threshold", [{ x: thresholds.magnitude }]);
  await curves.view.runAsync();
  await relabel(curves.view, curves.meta);
}

const MOST_FEATURES = 100;

function fillFeatures(results) {
  const body = document.querySelector("#explorer-features tbody");
  const preset = BY_PRESET.get(state.preset);
  const chosen = results.find(({ model }) => model.model === state.featuresOf);
  const summary = document.getElementById("explorer-features-note");
  if (!chosen?.counts?.isPooled) {
    body.replaceChildren();
    summary.textContent = chosen?.counts
      ? "This preset counts (feature, sequence) pairs; choose one that pools the sequences to see its features."
      : "Choose a model that is shown above and a preset that follows the sliders.";
    return;
  }
  const features = featuresAt(chosen.counts, thresholdsOf(preset), state.side);
  summary.textContent =
    features.length > MOST_FEATURES
      ? `The ${MOST_FEATURES} with the largest peaks, of ${features.length.toLocaleString("en-US")}.`
      : `${features.length} of ${chosen.model.d_model.toLocaleString("en-US")} features.`;
  body.replaceChildren(
    ...features.slice(0, MOST_FEATURES).map((row) => {
      const line = document.createElement("tr");
      const cells = [
        [row.feature, String(row.feature)],
        [row.peak, written(row.peak, "magnitude")],
        [row.layer_fraction, written(row.layer_fraction, "percent")],
        [row.position_fraction, written(row.position_fraction, "percent")],
      ];
      for (const [value, text] of cells) {
        const cell = document.createElement("td");
        cell.className = "number";
        cell.dataset.sort = String(value);
        cell.textContent = text;
        line.append(cell);
      }
      return line;
    }),
  );
}
