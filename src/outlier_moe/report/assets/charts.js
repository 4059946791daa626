// Drawing: each chart when it comes into view, in the page's theme, its names placed for the width it gets.

const THEMES = json("themes");
const drawn = new Map();

function currentTheme() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen) return chosen;
  return window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

const EMBED = {
  mode: "vega-lite",
  renderer: "svg",
  actions: { export: true, source: false, compiled: false, editor: false },
};

// What stands left and right of the axes of a chart with names; plots/marks.py keeps the left side as wide.
const BESIDE = 84;

// Draws a specification into an element, as wide as the element is.
async function draw(element, spec) {
  drawn.get(element)?.finalize();
  // Names are placed in pixels, so that their chart's width must not depend on what it shows.
  const width = spec.usermeta?.labels
    ? { width: Math.max(element.clientWidth - BESIDE, 120) }
    : { width: "container", autosize: { type: "fit-x", contains: "padding" } };
  const isNarrow = element.clientWidth < NARROW;
  // Side by side the names of a legend would be cut off.
  const legend = isNarrow ? { config: { ...spec.config, legend: { columns: 2, labelLimit: 130 } } } : {};
  const drawing = spec.facet || spec.concat ? panels(element, spec) : { ...spec, ...width, ...legend };
  // What a screen reader calls it: Vega puts it on the picture, whose role is that of a graphic.
  const sized = { ...drawing, description: element.getAttribute("aria-label") ?? undefined };
  const result = await vegaEmbed(element, sized, { ...EMBED, config: THEMES[currentTheme()] });
  drawn.set(element, result);
  element.dataset.drawn = currentTheme();
  if (spec.usermeta?.labels) {
    await relabel(result.view, spec.usermeta.labels);
    widths.set(element, element.clientWidth);
    resized.observe(element);
  }
  return result.view;
}

// The legend's share of the room, where there is enough for one beside the panels.
const LEGEND = 120;
const NARROW = 560;

// Panels take what room there is, up to this many times their own width.
const STRETCH = 1.6;

// As many panels beside each other as have room, none wider than the element.
function panels(element, spec) {
  const isNarrow = element.clientWidth < NARROW;
  // Of panels with axes of their own kinds the legend stands above.
  const room = element.clientWidth - (isNarrow || spec.concat ? 0 : LEGEND);
  const own = (spec.spec ?? spec.concat[0]).width;
  const columns = Math.max(1, Math.min(spec.columns ?? 1, Math.floor(room / (own + BESIDE))));
  const width = Math.min(STRETCH * own, Math.max(room / columns - BESIDE, 120));
  const legend = isNarrow ? { config: { legend: { orient: "bottom", columns: 2 } } } : {};
  const parts = spec.spec
    ? { spec: { ...spec.spec, width } }
    : { concat: spec.concat.map((one) => ({ ...one, width })) };
  const title = isNarrow && spec.title ? { title: folded(spec.title) } : {};
  return { ...spec, ...legend, ...title, columns, ...parts };
}

// A title's clauses in lines of their own: its length would decide how wide the picture is.
function folded(title) {
  const clauses = (text) => text.split("; ");
  if (title.text?.expr) return { ...title, text: { expr: `split(${title.text.expr}, "; ")` } };
  return { ...title, text: Array.isArray(title.text) ? title.text.flatMap(clauses) : clauses(title.text) };
}

const widths = new Map();
let waiting = null;

// Charts with names are drawn anew when the window gives them another width.
const resized = new ResizeObserver((entries) => {
  if (entries.every(({ target }) => Math.abs(target.clientWidth - widths.get(target)) < 8)) return;
  clearTimeout(waiting);
  waiting = setTimeout(redrawAll, 150);
});

// Places the names of the data set `points` on a drawn chart; `hollow` marks and intervals are kept clear.
async function relabel(view, { size, radius, dearest }) {
  const points = view.data("points");
  const other = dataOf(view, "hollow");
  const x = view.scale("x");
  const y = view.scale("y");
  const all = [...points, ...other];
  const marks = all.map((row) => ({ x: x(row.x), y: y(row.y) }));
  const names = all.map((row, k) => (k < points.length ? row.label ?? row.model : ""));
  const bars = points
    .filter((row) => row.low !== null && row.low !== undefined)
    .map((row) => [x(row.x), y(row.low), x(row.x), y(row.high)]);
  const places = placeLabels(marks, names, {
    width: view.width(),
    height: view.height(),
    bars: [...bars, ...segments(view, x, y)],
    size,
    radius,
    dearest,
  });
  const labels = points.flatMap((row, k) => {
    const place = places[k];
    if (place === null) return [];
    return [
      {
        name: names[k],
        kind: row.kind,
        x: x.invert(place.x),
        y: y.invert(place.y),
        from_x: row.x,
        from_y: row.y,
        to_x: x.invert(place.leader[2]),
        to_y: y.invert(place.leader[3]),
        has_leader: place.hasLeader,
      },
    ];
  });
  await view.data("labels", labels).runAsync();
}

function dataOf(view, name) {
  try {
    return view.data(name);
  } catch {
    return [];
  }
}

function segments(view, x, y) {
  const rows = dataOf(view, "curves");
  const lines = [];
  for (let i = 1; i < rows.length; i++) {
    if (rows[i].model !== rows[i - 1].model) continue;
    lines.push([x(rows[i - 1].x), y(rows[i - 1].y), x(rows[i].x), y(rows[i].y)]);
  }
  return lines;
}

const specOf = new Map();

// Draws a chart once it comes near the screen.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      drawBlob(target);
    }
  },
  { rootMargin: "600px" },
);

const begun = new Set();

async function drawBlob(element) {
  if (begun.has(element)) return;
  begun.add(element);
  const charts = await blob(element.dataset.charts);
  const spec = charts?.[element.dataset.chart];
  if (!spec) {
    element.replaceChildren(note("This model's recording has nothing to show here."));
    return;
  }
  specOf.set(element, spec);
  await draw(element, spec);
}

function note(text) {
  const paragraph = document.createElement("p");
  paragraph.className = "empty";
  paragraph.textContent = text;
  return paragraph;
}

// Says why there is nothing to draw, in place of an empty frame.
function say(element, text) {
  drawn.get(element)?.finalize();
  drawn.delete(element);
  resized.unobserve(element);
  delete element.dataset.drawn;
  element.classList.remove("vega-embed", "has-actions");
  element.replaceChildren(note(text));
}

function watchCharts(root) {
  for (const element of root.querySelectorAll(".chart[data-charts]")) {
    if (!begun.has(element)) watcher.observe(element);
  }
}

const idle = () => new Promise((resume) => (window.requestIdleCallback ?? setTimeout)(resume));

// Draws what has not come into view as well, whenever there is nothing else to do: the page may be printed or saved.
async function drawTheRest() {
  for (const element of document.querySelectorAll(".chart[data-charts]")) {
    await idle();
    // Those of models that are not shown have no width.
    if (element.clientWidth > 0) await drawBlob(element);
  }
}

// Everything that is on the page, in its theme and width.
async function redrawAll() {
  await Promise.all([...specOf].filter(([element]) => element.clientWidth > 0).map((chart) => draw(...chart)));
  redrawExplorer();
}
