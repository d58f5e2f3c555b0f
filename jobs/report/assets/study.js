// One picture or pair at a time; choices are kept in the browser and saved as JSON.

const data = readData();
const place = `doodl-study-${data.study}`;
const answers = data.kind === "pairwise"
  ? [["left", "Left", "←"], ["draw", "No difference", "↓"], ["right", "Right", "→"]]
  : data.levels.map((level, i) => [i + 1, level, String(i + 1)]);
let state = null, since = 0;

function shuffled(list) {
  const order = [...list];
  for (let i = order.length - 1; i > 0; i -= 1) {
    const j = Math.floor(Math.random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function fresh(rater) {
  return { rater, order: shuffled(data.items.map((item) => item.id)), at: 0, choices: {}, started: new Date().toISOString() };
}

function stored() {
  try {
    const found = JSON.parse(recall(place));
    const known = new Set(data.items.map((item) => item.id));
    const fits = found && typeof found.rater === "string" && Array.isArray(found.order)
      && found.order.length === known.size && found.order.every((id) => known.has(id));
    return fits ? found : null;
  } catch { return null; }
}

const keep = () => remember(place, JSON.stringify(state));
const items = new Map(data.items.map((item) => [item.id, item]));

function only(id) {
  for (const section of ["start", "task", "end"]) byId(section).hidden = section !== id;
}

function picture(caption, source, alt) {
  return el("figure", {}, el("img", { src: source, alt, draggable: "false" }), el("figcaption", {}, caption));
}

function show() {
  if (state.at >= state.order.length) { finish(); return; }
  only("task");
  const item = items.get(state.order[state.at]);
  byId("progress").textContent = `${state.at + 1} of ${state.order.length}, ${Object.keys(state.choices).length} answered`;
  byId("prompt").hidden = !item.prompt;
  byId("prompt").textContent = item.prompt ?? "";
  if (data.kind === "pairwise") {
    byId("pictures").replaceChildren(picture("Left", item.left, "Left picture"), picture("Right", item.right, "Right picture"));
  } else {
    const subjects = item.subjects.map((source, i) => el("img", { src: source, alt: `Photo ${i + 1} of the subject` }));
    byId("pictures").replaceChildren(
      el("figure", {}, el("div", { class: "subjects" }, ...subjects), el("figcaption", {}, "The subject")),
      picture("The picture to rate", item.picture, "Picture to rate"));
  }
  const chosen = state.choices[item.id]?.choice;
  byId("answers").replaceChildren(...answers.map(([value, label, key]) =>
    el("button", { type: "button", "data-choice": value, "aria-pressed": String(chosen === value), onclick: () => choose(value) },
      label, " ", el("kbd", {}, key))));
  byId("back").disabled = state.at === 0;
  since = performance.now();
}

function choose(value) {
  const id = state.order[state.at];
  const seconds = Math.round((performance.now() - since) / 100) / 10;
  state.choices[id] = { choice: value, seconds };
  state.at += 1;
  keep();
  show();
}

function finish() {
  only("end");
  byId("summary").textContent = `${Object.keys(state.choices).length} of ${state.order.length} answered.`;
  byId("text").value = said();
}

function said() {
  const choices = Object.entries(state.choices).map(([item, { choice, seconds }]) => ({ item, choice, seconds }));
  return JSON.stringify({
    doodl_study: 1, study: data.study, kind: data.kind, rater: state.rater,
    started: state.started, saved: new Date().toISOString(), choices,
  }, null, 1);
}

function save() {
  const address = URL.createObjectURL(new Blob([said()], { type: "application/json" }));
  const name = state.rater.replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 40) || "someone";
  const link = el("a", { href: address, download: `choices-${data.study}-${name}.json` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function move(step) { state.at = Math.max(0, state.at + step); keep(); show(); }

function begin() {
  const rater = byId("rater").value.trim();
  if (!rater) { byId("rater").focus(); return; }
  const earlier = stored();
  state = earlier && earlier.rater === rater ? earlier : fresh(rater);
  keep();
  show();
}

const ARROWS = { ArrowLeft: "left", ArrowDown: "draw", ArrowRight: "right" };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("task").hidden || isTyping(event.target)) return;
  if (data.kind === "pairwise" && ARROWS[event.key]) { event.preventDefault(); choose(ARROWS[event.key]); }
  else if (data.kind === "rating" && answers.some(([value]) => String(value) === event.key)) choose(Number(event.key));
  else if (event.key === "Backspace") { event.preventDefault(); move(-1); }
  else if (event.key === "s") move(1);
});

startTheme();
byId("question").textContent = data.question;
byId("rater").value = stored()?.rater ?? "";
byId("begin").addEventListener("click", begin);
byId("rater").addEventListener("keydown", (event) => { if (event.key === "Enter") begin(); });
byId("back").addEventListener("click", () => move(-1));
byId("skip").addEventListener("click", () => move(1));
byId("review").addEventListener("click", () => { state.at = 0; keep(); show(); });
byId("restart").addEventListener("click", () => { forget(place); state = null; only("start"); });
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
document.documentElement.dataset.ready = "true";
