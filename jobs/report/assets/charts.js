// Charts as inline SVG, drawn again of the photos that are shown.

const WIDE = 420, HIGH = 165, LEFT = 44, RIGHT = 12, TOP = 8, BOTTOM = 24;

function ticks(low, high, count = 5) {
  const span = high - low || 1;
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const marks = [];
  // Counted, not added up: a sum of steps passes zero at 1e-17.
  for (let n = Math.ceil(low / step - 1e-6); n * step <= high + step * 1e-6; n += 1) marks.push(n * step);
  return marks;
}

const short = (number) => String(Number(number.toPrecision(3)));

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  if (low === high) { low -= .5; high += .5; }
  return [low, high];
}

function frame(xs, ys) {
  const x = (v) => LEFT + (v - xs[0]) / (xs[1] - xs[0]) * (WIDE - LEFT - RIGHT);
  const y = (v) => HIGH - BOTTOM - (v - ys[0]) / (ys[1] - ys[0]) * (HIGH - TOP - BOTTOM);
  const nodes = [svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${HIGH - BOTTOM}H${WIDE - RIGHT}` })];
  for (const mark of ticks(...xs)) {
    nodes.push(svg("text", { x: x(mark), y: HIGH - 7, "text-anchor": "middle" }, short(mark)));
  }
  for (const mark of ticks(...ys, 4)) {
    nodes.push(svg("text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, short(mark)));
  }
  return { x, y, nodes };
}

function figure(title, label, nodes, legend) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title}. ${label}` }, ...nodes);
  const entries = legend.map(([kind, text]) =>
    el("span", {}, svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, class: `swatch-${kind}` })), text));
  return el("figure", { class: "chart" }, el("figcaption", {}, title), picture, el("div", { class: "legend" }, ...entries));
}

function empty(title) {
  return el("figure", { class: "chart" }, el("figcaption", {}, title), el("p", { class: "muted" }, "no such figures among these photos"));
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function histogram(title, series) {
  const all = series.flatMap((one) => one.values);
  if (!all.length) return empty(title);
  const [low, high] = extent(all), bins = 24;
  const counts = series.map(({ values }) => {
    const count = new Array(bins).fill(0);
    for (const v of values) count[Math.min(bins - 1, Math.floor((v - low) / (high - low) * bins))] += 1;
    return count;
  });
  const { x, y, nodes } = frame([low, high], [0, Math.max(...counts.flat())]);
  const width = (WIDE - LEFT - RIGHT) / bins;
  counts.forEach((count, which) => {
    const bars = count.map((n, i) => n ? `M${x(low) + i * width} ${y(0)}V${y(n)}h${width - 1}V${y(0)}z` : "").join("");
    nodes.push(svg("path", { class: `fill-${which}`, d: bars }));
  });
  if (low < 0 && high > 0) nodes.push(svg("path", { class: "zero", d: `M${x(0)} ${TOP}V${HIGH - BOTTOM}` }));
  const legend = series.map(({ label, values }, i) =>
    [i, values.length ? `${label}: mean ${mean(values).toFixed(2)} of ${whole(values.length)}` : `${label}: none`]);
  return figure(title, legend.map((entry) => entry[1]).join(", "), nodes, legend);
}

function scatter(title, xLabel, yLabel, groups, onPick) {
  const points = groups.flatMap((group) => group.points);
  if (!points.length) return empty(title);
  const { x, y, nodes } = frame(extent(points.map((p) => p[0])), extent(points.map((p) => p[1])));
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  if (extent(xs)[0] < 0 && extent(xs)[1] > 0) nodes.push(svg("path", { class: "zero", d: `M${x(0)} ${TOP}V${HIGH - BOTTOM}` }));
  if (extent(ys)[0] < 0 && extent(ys)[1] > 0) nodes.push(svg("path", { class: "zero", d: `M${LEFT} ${y(0)}H${WIDE - RIGHT}` }));
  for (const group of groups) {
    // One path of dots for thousands of photos: as many circles would slow every scroll.
    const d = group.points.map((p) => `M${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}h0`).join("");
    nodes.push(svg("path", { class: `dots s-${group.index}`, d }));
  }
  const chart = figure(title, `${yLabel} over ${xLabel}, ${whole(points.length)} photos`, nodes,
    groups.filter((g) => g.points.length).map((g) => [`s-${g.index}`, `${g.label} ${whole(g.points.length)}`]));
  chart.append(el("p", { class: "muted legend" }, `across: ${xLabel}; up: ${yLabel}. Click a dot to open its photo.`));
  const picture = chart.querySelector("svg");
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect(), scale = WIDE / box.width;
    const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = null, near = 144;
    for (const p of points) {
      const far = (x(p[0]) - at[0]) ** 2 + (y(p[1]) - at[1]) ** 2;
      if (far < near) { near = far; best = p[2]; }
    }
    if (best !== null) onPick(best);
  });
  return chart;
}

function lines(title, curves, unit = "") {
  const drawn = curves.filter((curve) => curve.values.length > 1);
  if (!drawn.length) return empty(title);
  const longest = Math.max(...drawn.map((curve) => curve.values.length)) - 1;
  const { x, y, nodes } = frame([0, longest], extent(drawn.flatMap((curve) => curve.values)));
  drawn.forEach((curve, i) => {
    const way = curve.values.map((v, n) => `${n ? "L" : "M"}${x(n * longest / (curve.values.length - 1)).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    nodes.push(svg("path", { class: `line-${i % 2}`, d: way }));
  });
  const legend = drawn.map((curve, i) => [i % 2, `${curve.label}: ${short(curve.values[0])} to ${short(curve.values.at(-1))}${unit}`]);
  return figure(title, legend.map((entry) => entry[1]).join(", "), nodes, legend);
}

// Losses of unlike photos have unlike levels: what is shown is how far each fell from its start.
function medianCurve(curves) {
  const longest = Math.max(0, ...curves.map((curve) => curve.length));
  const middle = [];
  for (let i = 0; i < longest; i += 1) {
    const at = curves.filter((curve) => i < curve.length).map((curve) => curve[i] - curve[0]).sort((a, b) => a - b);
    middle.push(at[Math.floor(at.length / 2)]);
  }
  return middle;
}
