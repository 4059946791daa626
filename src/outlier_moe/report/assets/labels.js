// Where the names of marks go: plots/labels.py in JavaScript, for pictures of any width. Same input, same places.

const LABELS = json("label-rules");

function textWidth(text, size) {
  let width = 0;
  for (const letter of text) {
    const code = letter.codePointAt(0) - 32;
    width += code >= 0 && code < LABELS.advance.length ? LABELS.advance[code] : LABELS.widest;
  }
  return (width * size) / 1000;
}

// marks: [{x, y}] in pixels; names: an empty one needs no place; bars: [[x, y, x, y]] better not written over;
// dearest: what a place may cost.
function placeLabels(marks, names, { width, height, bars = [], size = 11, radius = 5, dearest = Infinity }) {
  const places = new Map();
  const order = mostCrowdedFirst(marks);
  for (let round = 0; round < LABELS.rounds; round++) {
    for (const mark of order) {
      if (!names[mark]) continue;
      const half = [textWidth(names[mark], size) / 2 + LABELS.padding, (size * LABELS.line_height) / 2];
      const others = [...places].filter(([other]) => other !== mark).map(([, place]) => place);
      const chosen = cheapest(mark, marks, half, {
        width,
        height,
        radius,
        taken: others.map((place) => place.box),
        lines: [...bars, ...others.filter((place) => place.hasLeader).map((place) => place.leader)],
      });
      if (chosen !== null) places.set(mark, chosen);
    }
  }
  return marks.map((_, mark) => (places.get(mark)?.cost <= dearest ? places.get(mark) : null));
}

function mostCrowdedFirst(marks) {
  const crowd = marks.map(
    (a) => marks.filter((b) => Math.abs(a.x - b.x) < 90 && Math.abs(a.y - b.y) < 30).length,
  );
  return marks.map((_, mark) => mark).sort((a, b) => crowd[b] - crowd[a] || a - b);
}

const OFF_AXES = [0, 3, 2, 3, 1, 3, 2, 3];
const clip = (value, low, high) => Math.min(Math.max(value, low), high);

function cheapest(mark, marks, half, picture) {
  const at = marks[mark];
  const edges = marks.map(({ x, y }) => [
    x - picture.radius,
    y - picture.radius,
    x + picture.radius,
    y + picture.radius,
  ]);
  const obstacles = [...edges.filter((_, other) => other !== mark), ...picture.taken];
  let best = null;
  for (const gap of LABELS.gaps) {
    LABELS.angles.forEach((angle, step) => {
      const cosine = Math.cos((angle * Math.PI) / 180);
      const sine = Math.sin((angle * Math.PI) / 180);
      const x = at.x + cosine * (picture.radius + gap) + half[0] * clip(2 * cosine, -1, 1);
      const y = at.y + sine * (picture.radius + gap) + half[1] * clip(2 * sine, -1, 1);
      const box = [x - half[0], y - half[1], x + half[0], y + half[1]];
      if (box[0] < 0 || box[1] < 0 || box[2] > picture.width || box[3] > picture.height) return;
      if (overlap(box, edges[mark]) || obstacles.some((other) => overlap(box, other))) return;
      const leader = [at.x, at.y, clip(at.x, box[0], box[2]), clip(at.y, box[1], box[3])];
      const hasLeader = gap >= LABELS.leader_from;
      let cost = gap + LABELS.off_the_axes * OFF_AXES[step % 8];
      cost += LABELS.over_a_line * picture.lines.filter((line) => lineInBox(line, box)).length;
      if (hasLeader) {
        cost += LABELS.leader_over_a_box * obstacles.filter((other) => lineInBox(leader, other)).length;
        cost += LABELS.leader_over_a_line * picture.lines.filter((line) => linesCross(leader, line)).length;
      }
      const own = distance(box, at);
      if (marks.some((other, k) => k !== mark && distance(box, other) < own + LABELS.clearly)) cost += LABELS.nearer_to_another;
      if (best === null || cost < best.cost) best = { cost, box, leader, hasLeader, x, y };
    });
  }
  return best;
}

function overlap(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

function distance(box, point) {
  const across = Math.max(box[0] - point.x, point.x - box[2], 0);
  const down = Math.max(box[1] - point.y, point.y - box[3], 0);
  return Math.hypot(across, down);
}

function lineInBox(line, box) {
  let enter = 0;
  let leave = 1;
  for (const k of [0, 1]) {
    const step = line[k + 2] - line[k];
    const low = box[k] - line[k];
    const high = box[k + 2] - line[k];
    if (step === 0) {
      if (!(low < 0 && high > 0)) return false;
      continue;
    }
    enter = Math.max(enter, Math.min(low / step, high / step));
    leave = Math.min(leave, Math.max(low / step, high / step));
  }
  return enter < leave;
}

function linesCross(a, b) {
  const side = (line, x, y) => (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0]);
  return side(a, b[0], b[1]) * side(a, b[2], b[3]) < 0 && side(b, a[0], a[1]) * side(b, a[2], a[3]) < 0;
}
