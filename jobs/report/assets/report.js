// The gallery: filters, sorting, a windowed grid, and the viewer with its slider.

const data = readData();
const rows = data.rows.map((row, index) => ({ ...row, index, words: `${row.id} ${row.prompt ?? ""}`.toLowerCase() }));
const GAP = 14, ABOUT = 104, OVERSCAN = 2;
const SIZES = { small: [250, 130], medium: [380, 215], large: [640, 380] };
let size = SIZES[recall("doodl-size")] ? recall("doodl-size") : "medium";
let shown = [], active = 0, layout = null, seen = new Map();
const hidden = new Set();

const format = (key, value) => {
  if (value === null || value === undefined) return "–";
  const metric = data.metrics[key];
  const text = metric.digits === null ? Number(value.toPrecision(3)).toExponential(1) : value.toFixed(metric.digits);
  return (metric.signed && value > 0 ? "+" : "") + text + (metric.unit ?? "");
};
const tone = (key, value) => {
  const better = data.metrics[key].better;
  if (!better || !value) return null;
  return value * better > 0 ? "good" : "bad";
};

// ---- which photos, in what order

function filtered() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const error = byId("error")?.value ?? "";
  return rows.filter((row) =>
    !hidden.has(row.status) && (!error || row.error === error) && words.every((word) => row.words.includes(word)));
}

function sorted(list) {
  const key = byId("sort").value, sign = byId("order").getAttribute("aria-pressed") === "true" ? -1 : 1;
  if (key === "id") return list.sort((a, b) => sign * (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  if (key === "status") return list.sort((a, b) => sign * (data.statuses.indexOf(a.status) - data.statuses.indexOf(b.status)) || a.index - b.index);
  // Photos without the figure come last, whichever way the rest goes.
  return list.sort((a, b) => {
    const one = a.m[key] ?? null, two = b.m[key] ?? null;
    if (one === null || two === null) return (one === null) - (two === null) || a.index - b.index;
    return sign * (one - two) || a.index - b.index;
  });
}

let pending = 0;
function refresh(redraw = true) {
  shown = sorted(filtered());
  active = 0;
  byId("count").textContent = shown.length === rows.length ? `${whole(rows.length)} photos` : `${whole(shown.length)} of ${whole(rows.length)} photos`;
  byId("nothing").hidden = shown.length > 0;
  place();
  // Charts tell of the photos shown, not of their order; and what stands above a click stays put.
  if (!redraw) return;
  clearTimeout(pending);
  pending = setTimeout(drawCharts, 120);
}

// ---- the windowed grid: only the cards near the view are in the page

function place() {
  const gallery = byId("gallery"), width = gallery.clientWidth, [least, tall] = SIZES[size];
  const columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
  const cardWidth = (width - GAP * (columns - 1)) / columns;
  const cardHeight = tall + ABOUT;
  layout = { columns, cardWidth, cardHeight };
  const lines = Math.ceil(shown.length / columns);
  gallery.style.height = `${Math.max(0, lines * (cardHeight + GAP) - GAP)}px`;
  for (const node of seen.values()) node.remove();
  seen = new Map();
  draw();
}

function draw() {
  if (!layout) return;
  const gallery = byId("gallery"), top = gallery.getBoundingClientRect().top;
  const line = layout.cardHeight + GAP;
  const first = Math.max(0, Math.floor(-top / line) - OVERSCAN) * layout.columns;
  const last = Math.min(shown.length, (Math.ceil((innerHeight - top) / line) + OVERSCAN) * layout.columns);
  for (const [at, node] of seen) {
    // The focused card stays, so that keys still have somewhere to go.
    if ((at < first || at >= last) && !node.contains(document.activeElement)) { node.remove(); seen.delete(at); }
  }
  for (let at = first; at < last; at += 1) if (!seen.has(at)) addCard(at);
}

function addCard(at) {
  const node = card(shown[at], at);
  const { columns, cardWidth, cardHeight } = layout;
  Object.assign(node.style, {
    left: `${(at % columns) * (cardWidth + GAP)}px`, top: `${Math.floor(at / columns) * (cardHeight + GAP)}px`,
    width: `${cardWidth}px`, height: `${cardHeight}px`,
  });
  byId("gallery").append(node);
  seen.set(at, node);
}

function shot(row, which) {
  const label = data.labels[which], source = row.pics[which];
  const content = source
    ? el("img", { src: source, alt: `${label}: ${row.id}`, loading: "lazy", decoding: "async", draggable: "false" })
    : el("span", { class: "none" }, which ? absent(row) : "no picture");
  return el("span", { class: "shot" }, content, el("span", { class: "tag" }, label));
}

const absent = (row) => (row.status === "skipped" ? "left as it was" : "not delivered");

function card(row, at) {
  const open = el("button", {
    type: "button", class: "open", tabindex: at === active ? "0" : "-1",
    "aria-label": `${row.id}, ${row.status}. Open to compare.`,
    onclick: () => view(at), onfocus: () => setActive(at),
  }, ...data.labels.map((_, which) => shot(row, which)));
  const lines = [el("p", { class: "name", title: row.id }, row.id)];
  if (row.why) lines.push(el("p", { class: `why ${row.status === "failed" ? "bad" : "warn"}`, title: row.why }, row.error ? `${row.error}: ${row.why}` : row.why));
  else if (row.prompt) lines.push(el("p", { title: row.prompt }, row.prompt));
  for (const keys of data.card) {
    const parts = keys.filter((key) => (row.m[key] ?? null) !== null).map((key) =>
      el("span", { class: tone(key, row.m[key]) }, `${data.metrics[key].label} ${format(key, row.m[key])}`));
    if (parts.length) lines.push(el("p", {}, ...parts.flatMap((part, i) => (i ? [" · ", part] : [part]))));
  }
  return el("div", { class: "item", role: "listitem", "aria-setsize": shown.length, "aria-posinset": at + 1 }, open,
    el("div", { class: "about" }, ...lines));
}

function setActive(at) {
  seen.get(active)?.querySelector(".open")?.setAttribute("tabindex", "-1");
  active = at;
  seen.get(active)?.querySelector(".open")?.setAttribute("tabindex", "0");
}

function focusCard(at) {
  if (!shown.length) return;
  at = Math.min(shown.length - 1, Math.max(0, at));
  const line = Math.floor(at / layout.columns) * (layout.cardHeight + GAP);
  const top = byId("gallery").getBoundingClientRect().top + line, bar = byId("tools").offsetHeight + 8;
  if (top < bar || top + layout.cardHeight > innerHeight) scrollBy({ top: top - bar, behavior: "instant" });
  draw();
  if (!seen.has(at)) addCard(at);
  setActive(at);
  seen.get(at).querySelector(".open").focus({ preventScroll: true });
}

// ---- the viewer

// What lies under the slider and over it. A run that delivers nothing leaves the photo as it was.
function pairOf(row) {
  const [first, second] = data.slide;
  const there = [first, second].filter((which) => which && row.pics[which]);
  if (there.length === 2) return there;
  return [row.pics[0] ? 0 : null, there.length ? there[0] : null];
}

let at = 0, under = null;
function view(index) {
  at = Math.min(shown.length - 1, Math.max(0, index));
  const row = shown[at], dialog = byId("viewer");
  byId("viewer-name").textContent = row.id;
  byId("viewer-place").textContent = `${whole(at + 1)} of ${whole(shown.length)}`;
  byId("previous").disabled = at === 0;
  byId("next").disabled = at === shown.length - 1;
  const [below, over] = pairOf(row);
  under = below ?? over;
  const both = below !== null && over !== null;
  const stage = byId("stage");
  stage.replaceChildren();
  if (under !== null) stage.append(big(row, under, ""));
  if (both) stage.append(big(row, over, "over"), el("span", { class: "bar" }), el("span", { class: "tag right" }, data.labels[over]));
  stage.append(el("span", { class: "tag" }, under === null ? "no picture" : data.labels[under]));
  byId("slider").disabled = !both;
  byId("hold").disabled = !both || !row.pics[0];
  slide(50);
  byId("side").replaceChildren(...details(row));
  if (!dialog.open) { dialog.showModal(); byId("slider").focus(); }
}

function big(row, which, kind) {
  const node = el("img", { src: row.pics[which], alt: `${data.labels[which]}: ${row.id}`, class: kind, draggable: "false" });
  // The thumbnails are there at once; the photos themselves take their place where all can be shown.
  if (row.full && row.full.every(Boolean)) {
    const better = new Image();
    better.addEventListener("load", () => { if (node.isConnected) node.src = better.src; });
    better.src = row.full[which];
  }
  return node;
}

function details(row) {
  const parts = [];
  parts.push(el("p", {}, el("strong", {}, row.status), row.stop ? ` (stopped: ${row.stop})` : ""));
  if (row.why) parts.push(el("p", { class: `why ${row.status === "failed" ? "bad" : "warn"}` }, row.error ? `${row.error}: ${row.why}` : row.why));
  if (row.prompt) parts.push(el("p", { class: "why" }, row.prompt));
  const table = el("tbody");
  for (const [key, metric] of Object.entries(data.metrics)) {
    if ((row.m[key] ?? null) === null) continue;
    table.append(el("tr", {}, el("th", { scope: "row", title: metric.help ?? null }, metric.label),
      el("td", { class: `number ${tone(key, row.m[key]) ?? ""}` }, format(key, row.m[key]))));
  }
  for (const [name, text] of row.lines ?? []) table.append(el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, text)));
  parts.push(el("table", {}, table));
  const curves = (row.curves ?? []).map((values, i) => ({ label: data.curves[i], values }));
  if (curves.some((curve) => curve.values.length > 1)) parts.push(lines("Loss by iteration", curves));
  (row.links ?? []).forEach((link, i) => {
    if (link) parts.push(el("p", {}, el("a", { href: link, target: "_blank", rel: "noopener" }, `Open the ${data.labels[i]} file`)));
  });
  return parts;
}

function slide(percent) {
  const value = Math.min(100, Math.max(0, percent));
  byId("stage").style.setProperty("--cut", `${value}%`);
  byId("slider").value = value;
}

function hold(on) {
  const row = shown[at];
  if (!row || byId("hold").disabled) return;
  const stage = byId("stage");
  stage.classList.toggle("hold", on);
  byId("hold").setAttribute("aria-pressed", String(on));
  // Of three pictures the photo itself lies under neither edge: it takes the lower one's place.
  if (under !== 0) {
    const which = on ? 0 : under;
    stage.querySelector("img").src = row.pics[which];
    stage.querySelector(".tag:not(.right)").textContent = data.labels[which];
  }
}

function dragging(event) {
  const box = byId("stage").getBoundingClientRect();
  if (!byId("slider").disabled) slide((event.clientX - box.left) / box.width * 100);
}

// ---- charts of what is shown

function values(key, list) {
  const found = [];
  for (const row of list) if ((row.m[key] ?? null) !== null) found.push(row.m[key]);
  return found;
}

function drawCharts() {
  const charts = [];
  for (const { title, series } of data.histograms) {
    charts.push(histogram(title, series.map((key) => ({ label: data.metrics[key].label, values: values(key, shown) }))));
  }
  for (const { title, x, y } of data.scatters) {
    const groups = data.statuses.map((status, index) => ({
      index, label: status,
      points: shown.filter((r) => r.status === status && (r.m[x] ?? null) !== null && (r.m[y] ?? null) !== null).map((r) => [r.m[x], r.m[y], r]),
    }));
    charts.push(scatter(title, data.metrics[x].label, data.metrics[y].label, groups, (row) => view(shown.indexOf(row))));
  }
  const medians = data.curves.map((label, i) => {
    const curves = shown.map((row) => row.curves?.[i] ?? []).filter((curve) => curve.length > 1);
    return { label: `${label}, ${whole(curves.length)} photos`, values: medianCurve(curves) };
  });
  charts.push(lines("Median loss, from its start, by iteration", medians));
  byId("charts").replaceChildren(...charts);
}

// ---- what a person does

function startFilters() {
  for (const button of document.querySelectorAll("[data-status]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true", status = button.dataset.status;
      button.setAttribute("aria-pressed", String(on));
      if (on) hidden.delete(status); else hidden.add(status);
      refresh();
    });
  }
  byId("error")?.addEventListener("change", () => refresh());
  byId("sort").addEventListener("change", () => refresh(false));
  byId("search").addEventListener("input", () => refresh());
  byId("order").addEventListener("click", () => {
    const down = byId("order").getAttribute("aria-pressed") !== "true";
    byId("order").setAttribute("aria-pressed", String(down));
    byId("order").textContent = down ? "High to low" : "Low to high";
    refresh(false);
  });
  byId("size").value = size;
  byId("size").addEventListener("change", () => { size = byId("size").value; remember("doodl-size", size); place(); });
  for (const link of document.querySelectorAll("[data-error]")) {
    link.addEventListener("click", () => { byId("error").value = link.dataset.error; refresh(); byId("tools").scrollIntoView(); });
  }
}

const MOVES = {
  ArrowRight: () => active + 1, ArrowLeft: () => active - 1,
  ArrowDown: () => active + layout.columns, ArrowUp: () => active - layout.columns,
  Home: () => 0, End: () => shown.length - 1,
};

function galleryKeys(event) {
  if (event.key === "/" ) { event.preventDefault(); byId("search").focus(); return; }
  if (event.key === "?") { byId("help").showModal(); return; }
  if (event.key === "t") { nextTheme(); return; }
  const inCard = document.activeElement?.classList.contains("open");
  if (event.key === "g" && !inCard) { focusCard(active); return; }
  if (inCard && MOVES[event.key]) { event.preventDefault(); focusCard(MOVES[event.key]()); }
}

function viewerKeys(event) {
  const onSlider = document.activeElement === byId("slider");
  if (event.key === " " && !event.repeat && document.activeElement?.tagName !== "A" && !(document.activeElement?.tagName === "BUTTON" && document.activeElement.id !== "hold")) {
    event.preventDefault(); hold(true);
  } else if (event.key === "j" || event.key === "n" || (event.key === "ArrowRight" && !onSlider)) view(at + 1);
  else if (event.key === "k" || event.key === "p" || (event.key === "ArrowLeft" && !onSlider)) view(at - 1);
  else if (event.key === "0") slide(0);
  else if (event.key === "1") slide(100);
}

function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (byId("help").open) return;
    if (byId("viewer").open) viewerKeys(event);
    else if (event.key === "Escape" && isTyping(event.target)) event.target.blur();
    else if (!isTyping(event.target)) galleryKeys(event);
  });
  document.addEventListener("keyup", (event) => { if (event.key === " " && byId("viewer").open) { event.preventDefault(); hold(false); } });
}

function startViewer() {
  const stage = byId("stage"), button = byId("hold");
  byId("slider").addEventListener("input", () => slide(Number(byId("slider").value)));
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); dragging(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) dragging(event); });
  button.addEventListener("pointerdown", () => hold(true));
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) button.addEventListener(end, () => hold(false));
  byId("previous").addEventListener("click", () => view(at - 1));
  byId("next").addEventListener("click", () => view(at + 1));
  byId("close").addEventListener("click", () => byId("viewer").close());
  // The browser tells of a close a moment later, by when the next photo may already be open.
  byId("viewer").addEventListener("close", () => {
    if (byId("viewer").open) return;
    hold(false);
    byId("stage").replaceChildren();
    focusCard(at);
  });
  byId("keys").addEventListener("click", () => byId("help").showModal());
  byId("help-close").addEventListener("click", () => byId("help").close());
}

startTheme();
startFilters();
startKeys();
startViewer();
let waiting = false;
addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}, { passive: true });
let measured = 0;
new ResizeObserver(() => {
  const width = byId("gallery").clientWidth;
  if (width !== measured) { measured = width; place(); }
}).observe(byId("gallery"));
refresh(false);
drawCharts();
document.documentElement.dataset.ready = "true";
