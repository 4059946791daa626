// The sliders: thresholds moved, every model judged anew from its counts at every edge.

const STUDY = json("study");
const BY_PRESET = new Map(STUDY.presets.map((preset) => [preset.name, preset]));

const state = {
  preset: STUDY.default_preset,
  magnitude: STUDY.thresholds.magnitude,
  layers: STUDY.thresholds.layer_fraction,
  positions: STUDY.thresholds.position_fraction,
  side: 0,
  x: "total_params_b",
  y: "n_systematic",
  models: new Set(STUDY.models.map((model) => model.model)),
  featuresOf: STUDY.models[0]?.model ?? null,
};

const countsOf = new Map();

function storedCounts(model, shape) {
  const key = `${model}/${shape}`;
  if (!countsOf.has(key)) {
    countsOf.set(key, blobText(`counts/${key}`).then((document_) => (document_ ? edgeCounts(document_) : null)));
  }
  return countsOf.get(key);
}

// Counts are deflated already: their blob is plain JSON.
async function blobText(name) {
  const element = document.querySelector(`script[data-counts="${CSS.escape(name)}"]`);
  return element === null ? null : JSON.parse(element.textContent);
}

// What a preset is judged by: its own thresholds where it has them, the sliders' elsewhere.
function thresholdsOf(preset) {
  return {
    magnitude: preset.magnitude ?? state.magnitude,
    layers: preset.layer_fraction ?? state.layers,
    positions: preset.position_fraction ?? state.positions,
  };
}

function shownModels() {
  return STUDY.models.filter((model) => state.models.has(model.model));
}

async function currentFigures() {
  const preset = BY_PRESET.get(state.preset);
  const thresholds = thresholdsOf(preset);
  return Promise.all(
    shownModels().map(async (model) => {
      if (preset.shape === null) {
        return { model, figures: STUDY.fixed[preset.name][["included", "excluded"][state.side]][model.model] ?? null };
      }
      const counts = await storedCounts(model.model, preset.shape);
      return { model, counts, figures: counts && figuresAt(counts, thresholds, state.side) };
    }),
  );
}

function command() {
  const own = STUDY.thresholds;
  const { start, keys } = STUDY.command;
  const changed = [
    ["magnitude", state.magnitude, own.magnitude],
    ["layer_fraction", state.layers, own.layer_fraction],
    ["position_fraction", state.positions, own.position_fraction],
  ].filter(([, value, configured]) => value !== configured);
  // What else the study was started with stays.
  const all = { ...keys, ...Object.fromEntries(changed.map(([key, value]) => [key, `${key}=${value}`])) };
  return Object.keys(all).length ? `${start} --config ${Object.values(all).join(" ")}` : start;
}

const SLIDERS = {
  magnitude: { stops: STUDY.stops.magnitude, text: (value) => `|x| ≥ ${value}` },
  layers: { stops: STUDY.stops.layers, text: (value) => `${+(100 * value).toFixed(4)} % of the layers` },
  positions: { stops: STUDY.stops.positions, text: (value) => `${+(100 * value).toFixed(4)} % of the positions` },
};

function showSettings() {
  const preset = BY_PRESET.get(state.preset);
  const own = { magnitude: preset.magnitude, layers: preset.layer_fraction, positions: preset.position_fraction };
  for (const [name, { stops, text }] of Object.entries(SLIDERS)) {
    const input = document.getElementById(`slider-${name}`);
    const isFixed = preset.shape === null || own[name] !== null;
    const shown = own[name] ?? state[name];
    input.value = String(Math.max(0, stops.indexOf(state[name])));
    input.disabled = isFixed;
    input.setAttribute("aria-valuetext", text(shown));
    document.getElementById(`value-${name}`).textContent =
      preset.shape === null ? "not used by this preset" : text(shown) + (own[name] !== null ? " (the preset's own)" : "");
  }
  document.getElementById("explorer-preset").value = state.preset;
  document.getElementById("explorer-first").value = String(state.side);
  document.getElementById("explorer-x").value = state.x;
  document.getElementById("explorer-y").value = state.y;
  document.getElementById("explorer-command").textContent = command();
  document.getElementById("explorer-fixed").hidden = preset.shape !== null;
  document.getElementById("models-shown").textContent =
    state.models.size === STUDY.models.length ? `all ${STUDY.models.length}` : `${state.models.size} of ${STUDY.models.length}`;
  for (const box of document.querySelectorAll("#model-choice input[type=checkbox]")) {
    box.checked = state.models.has(box.value);
  }
}

let pending = null;

// Runs after the events of this frame, and only the last of several.
function update({ curvesToo = true } = {}) {
  const mine = (pending = Symbol("update"));
  showSettings();
  document.body.dataset.settled = "false";
  requestAnimationFrame(async () => {
    if (mine !== pending) return;
    const results = await currentFigures();
    if (mine !== pending) return;
    fillTable(results);
    fillFeatures(results);
    keepInAddress();
    await drawScatter(results);
    if (mine !== pending) return;
    if (curvesToo) await drawCurves();
    else if (curves) await curves.view.data("threshold", [{ x: thresholdsOf(BY_PRESET.get(state.preset)).magnitude }]).runAsync();
    if (mine === pending) document.body.dataset.settled = "true";
  });
}

function keepInAddress() {
  const { preset, magnitude, layers, positions, side } = state;
  const settings = new URLSearchParams({ preset, magnitude, layers, positions, side });
  try {
    history.replaceState(null, "", `#${settings}`);
  } catch {
    // Some browsers refuse to change the address of a local file; the page works without.
  }
}

function readAddress() {
  const settings = new URLSearchParams(location.hash.slice(1));
  if (BY_PRESET.has(settings.get("preset"))) state.preset = settings.get("preset");
  for (const [name, { stops }] of Object.entries(SLIDERS)) {
    const value = Number(settings.get(name));
    if (stops.includes(value)) state[name] = value;
  }
  if (settings.get("side") === "1") state.side = 1;
}

function startExplorer() {
  if (STUDY.models.length === 0) return;
  readAddress();
  for (const [name, { stops }] of Object.entries(SLIDERS)) {
    const input = document.getElementById(`slider-${name}`);
    input.max = String(stops.length - 1);
    input.addEventListener("input", () => {
      state[name] = stops[Number(input.value)];
      update({ curvesToo: name !== "magnitude" });
    });
  }
  const choose = (id, set, options) =>
    document.getElementById(id).addEventListener("change", (event) => {
      set(event.target.value);
      update(options);
    });
  choose("explorer-preset", (value) => (state.preset = value));
  choose("explorer-first", (value) => (state.side = Number(value)));
  choose("explorer-x", (value) => (state.x = value));
  choose("explorer-y", (value) => (state.y = value));
  choose("explorer-features-of", (value) => (state.featuresOf = value), { curvesToo: false });
  document.getElementById("explorer-reset").addEventListener("click", () => {
    state.magnitude = STUDY.thresholds.magnitude;
    state.layers = STUDY.thresholds.layer_fraction;
    state.positions = STUDY.thresholds.position_fraction;
    update();
  });
  const choice = document.getElementById("model-choice");
  choice.addEventListener("change", (event) => {
    if (event.target.checked) state.models.add(event.target.value);
    else state.models.delete(event.target.value);
    update();
  });
  for (const button of choice.querySelectorAll("button[data-choose]")) {
    button.addEventListener("click", () => {
      const wanted = (model) => ({ all: true, none: false })[button.dataset.choose] ?? model.kind === button.dataset.choose;
      state.models = new Set(STUDY.models.filter(wanted).map((model) => model.model));
      update();
    });
  }
  update();
}
