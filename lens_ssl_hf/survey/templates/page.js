"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows;
const COUNT = rows.id.length;
const GRADES = ["A", "B", "C", "X"];
const COLUMNS = ["id", "ra", "dec", "sample", "inclusion_probability", "grade", "grader", "time"];
const CELL = 96; // least side of a mosaic's pictures in CSS pixels
const PER_PAGE = 100; // most pictures of a mosaic
const KEPT = 400; // decoded pictures that are kept

const element = (id) => document.getElementById(id);
const rowOf = new Map(rows.id.map((id, row) => [id, row]));
const state = {
  grader: "", seed: data.seed, order: [], at: 0, // the place in the order
  grades: new Map(), // row -> {grade, time}
  steps: [], // for undo
  mosaic: false, pointed: null, curve: 0, wide: false, revealed: false, unsaved: false,
};

// ---- pictures: decoded when they are shown, stretched by a table of 256 values for each channel

const decoded = new Map();

function pixelsOf(row) {
  if (!decoded.has(row)) decoded.set(row, decode(row).catch(() => null));
  if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  return decoded.get(row);
}

async function decode(row) {
  const image = new Image();
  image.src = "data:image/jpeg;base64," + rows.picture[row];
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = image.width;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.width);
}

async function paint(figure, row, curve, wide) {
  figure.dataset.row = row;
  const source = rows.picture[row] && (await pixelsOf(row));
  if (figure.dataset.row !== String(row)) return; // another one is shown by now
  figure.classList.toggle("none", !source);
  const canvas = figure.firstElementChild;
  if (!source) return void (canvas.width = 0);
  const side = wide ? source.width : data.size;
  const rim = (source.width - side) / 2;
  const { table } = data.curves[curve];
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const target = context.createImageData(side, side);
  for (let y = 0, to = 0; y < side; y++) {
    for (let x = 0, from = 4 * ((y + rim) * source.width + rim); x < side; x++, from += 4, to += 4) {
      for (let channel = 0; channel < 3; channel++) {
        target.data[to + channel] = table[channel][source.data[from + channel]];
      }
      target.data[to + 3] = 255;
    }
  }
  context.putImageData(target, 0, 0);
  figure.toggleAttribute("data-wide", side > data.size);
  figure.style.setProperty("--rim", (50 * (side - data.size)) / side + "%");
}

// ---- the order: a shuffle that depends on the seed alone (mulberry32, Fisher and Yates)

function shuffled(count, seed) {
  const order = Array.from({ length: count }, (_, i) => i);
  let a = seed >>> 0;
  const random = () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// ---- what the browser keeps, under a key of the ranking and the grader

const keyOf = (grader) => `lens-ssl grades ${data.ranking} ${grader}`;

function stored(grader) {
  try {
    return JSON.parse(localStorage.getItem(keyOf(grader)));
  } catch {
    return null;
  }
}

function save() {
  const grades = Object.fromEntries([...state.grades].map(([row, one]) => [rows.id[row], one]));
  try {
    localStorage.setItem(keyOf(state.grader), JSON.stringify({ seed: state.seed, grades }));
    localStorage.setItem("lens-ssl grader", state.grader);
    element("warning").hidden = true;
    state.unsaved = false;
  } catch (error) {
    state.unsaved = true;
    element("warning").textContent =
      `This browser does not keep your grades (${error.name}: its storage is full or closed to this page). ` +
      "Export the CSV before you close or reload the page.";
    element("warning").hidden = false;
  }
}

function restore() {
  const kept = stored(state.grader);
  state.grades = new Map();
  for (const [id, one] of Object.entries(kept?.grades ?? {})) {
    if (rowOf.has(id)) state.grades.set(rowOf.get(id), one);
  }
}

// ---- grading

function change(changes) {
  const before = changes.map(([row]) => [row, state.grades.get(row)]);
  state.steps.push({ before, at: state.at });
  apply(changes);
}

function apply(changes) {
  for (const [row, one] of changes) {
    if (one) state.grades.set(row, one);
    else state.grades.delete(row);
  }
  save();
}

const now = (grade) => ({ grade, time: new Date().toISOString() });

function undo() {
  const step = state.steps.pop();
  if (!step) return tell("There is nothing to undo.");
  apply(step.before);
  move(step.at);
}

function grade(letter) {
  if (!state.mosaic) {
    change([[state.order[state.at], now(letter)]]);
    if (state.grades.size === COUNT) tell(`All ${COUNT} have a grade: export the CSV.`);
    return move(state.at + 1);
  }
  const cell = document.activeElement?.closest("#cells button");
  const row = state.pointed ?? (cell && Number(cell.dataset.row));
  if (row === null || row === undefined) return tell("Point at a candidate, or move the focus to it with Tab.");
  change([[row, now(letter)]]);
  mark();
}

function toggle(row, letter) {
  change([[row, state.grades.get(row)?.grade === letter ? undefined : now(letter)]]);
  mark();
}

function gradeRest() {
  const left = pageRows().filter((row) => !state.grades.has(row));
  if (left.length) change(left.map((row) => [row, now("X")]));
  turn(1);
}

// ---- moving

function move(at) {
  state.at = Math.max(0, Math.min(COUNT - 1, at));
  state.revealed = false;
  show();
}

function turn(step) {
  if (!state.mosaic) return move(state.at + step);
  const pages = Math.ceil(COUNT / perPage());
  const page = Math.max(0, Math.min(pages - 1, Math.floor(state.at / perPage()) + step));
  move(page * perPage());
}

function nextUngraded() {
  for (let i = 1; i <= COUNT; i++) {
    const at = (state.at + i) % COUNT;
    if (!state.grades.has(state.order[at])) return move(at);
  }
  tell(`All ${COUNT} have a grade: export the CSV.`);
}

function switchView() {
  const cell = document.activeElement?.closest("#cells button");
  const row = state.pointed ?? (cell && Number(cell.dataset.row));
  if (state.mosaic && row !== null && row !== undefined) state.at = state.order.indexOf(row);
  state.mosaic = !state.mosaic;
  state.pointed = null;
  move(state.at);
}

// ---- views

function show() {
  element("one").hidden = state.mosaic;
  element("mosaic").hidden = !state.mosaic;
  element("switch").firstChild.data = state.mosaic ? "One by one " : "Mosaic ";
  element("stretch").replaceChildren(`Stretch: ${data.curves[state.curve].name} `, kbd("S"));
  element("field").setAttribute("aria-pressed", state.wide);
  if (state.mosaic) showMosaic();
  else showOne();
  count();
}

function count() {
  element("bar").value = state.grades.size;
  const tally = GRADES.map((letter) => {
    return `${letter} ${[...state.grades.values()].filter((one) => one.grade === letter).length}`;
  });
  element("counts").textContent = `${state.grades.size} of ${COUNT} graded (${tally.join(", ")})`;
}

function showOne() {
  const row = state.order[state.at];
  paint(element("large"), row, state.curve, state.wide);
  document.querySelectorAll("#panels figure").forEach((figure, curve) => paint(figure, row, curve, state.wide));
  document.querySelectorAll("#panels button").forEach((one, curve) => press(one, curve === state.curve));
  document.querySelectorAll("#grades button").forEach((one) => {
    press(one, one.dataset.grade === state.grades.get(row)?.grade);
  });
  const facts = { Candidate: `${state.at + 1} of ${COUNT}, in random order of seed ${state.seed}`, "ID": rows.id[row] };
  if (rows.ra[row] !== null) facts["RA, Dec"] = `${rows.ra[row].toFixed(5)}, ${rows.dec[row].toFixed(5)}`;
  if (state.revealed) {
    facts.Score = rows.score[row].toPrecision(4);
    facts.Listed = rows.sample[row] === "top" ? `rank ${rows.rank[row]}` : "in the audit sample";
    if (rows.known) facts["Known lens"] = rows.known[row] ?? "no";
  }
  const items = Object.entries(facts).flatMap(([name, value]) => [make("dt", name), make("dd", value)]);
  element("facts").replaceChildren(...items);
  element("viewer").hidden = !rows.viewer[row];
  if (rows.viewer[row]) element("viewer").href = rows.viewer[row];
  for (const ahead of [1, 2]) {
    const next = state.order[state.at + ahead];
    if (next !== undefined && rows.picture[next]) pixelsOf(next);
  }
}

function grid() {
  const box = element("cells").getBoundingClientRect();
  const side = Math.max(CELL, Math.floor(Math.sqrt((box.width * box.height) / PER_PAGE)));
  const columns = Math.max(1, Math.floor((box.width - 6) / (side + 4)));
  const lines = Math.max(1, Math.floor((box.height - 6) / (side + 4)));
  return { side, columns, lines };
}

function perPage() {
  const { columns, lines } = grid();
  return Math.min(PER_PAGE, columns * lines);
}

function pageRows() {
  const first = Math.floor(state.at / perPage()) * perPage();
  return state.order.slice(first, first + perPage());
}

function showMosaic() {
  const { side, columns } = grid();
  const shown = pageRows();
  const cells = element("cells");
  cells.style.gridTemplateColumns = `repeat(${Math.min(columns, shown.length)}, ${side}px)`;
  while (cells.children.length > shown.length) cells.lastChild.remove();
  while (cells.children.length < shown.length) cells.append(makeCell());
  shown.forEach((row, i) => {
    cells.children[i].dataset.row = row;
    paint(cells.children[i].firstElementChild, row, state.curve, state.wide);
  });
  const page = Math.floor(state.at / perPage()) + 1;
  element("pages").textContent = `Page ${page} of ${Math.ceil(COUNT / perPage())}`;
  mark();
}

function makeCell() {
  const cell = make("button");
  const figure = make("figure");
  figure.append(make("canvas"));
  cell.append(figure, make("b"));
  return cell;
}

function mark() {
  for (const cell of element("cells").children) {
    const row = Number(cell.dataset.row);
    const given = state.grades.get(row)?.grade;
    if (given) cell.dataset.given = given;
    else delete cell.dataset.given;
    cell.lastChild.textContent = given ?? "";
    cell.title = rows.id[row];
    cell.setAttribute("aria-label", `${rows.id[row]}, ${given ? "grade " + given : "no grade"}`);
  }
  count();
}

function make(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

const kbd = (key) => make("kbd", key);
const press = (button, isPressed) => button.setAttribute("aria-pressed", isPressed);

let timer;
function tell(text, seconds = 8) {
  element("message").textContent = text;
  element("message").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => (element("message").hidden = true), 1000 * seconds);
}

// ---- CSV (RFC 4180)

function writeCsv() {
  const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const lines = [COLUMNS];
  for (let row = 0; row < COUNT; row++) {
    const one = state.grades.get(row);
    if (one) {
      const kept = COLUMNS.slice(0, 5).map((name) => String(rows[name][row] ?? ""));
      lines.push([...kept, one.grade, state.grader, one.time]);
    }
  }
  return lines.map((cells) => cells.map(quote).join(",") + "\n").join("");
}

function exportCsv() {
  if (!state.grades.size) return tell("Nothing is graded yet.");
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([writeCsv()], { type: "text/csv" }));
  link.download = `grades-${state.grader.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  state.unsaved = false;
  tell(`${state.grades.size} grades are in ${link.download}, among your downloads.`);
}

function parseCsv(text) {
  const lines = [];
  let cells = [];
  const pattern = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/y;
  text = text.replace(/^\uFEFF/, "");
  while (pattern.lastIndex < text.length) {
    const found = pattern.exec(text);
    if (!found) throw new Error(`line ${lines.length + 1} has a quote out of place`);
    cells.push(found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
    if (found[3] !== ",") {
      lines.push(cells);
      cells = [];
    }
  }
  if (cells.length) lines.push([...cells, ""]);
  return lines.filter((line) => line.length > 1 || line[0] !== "");
}

function readGrades(text) {
  const [header, ...lines] = parseCsv(text);
  const place = Object.fromEntries(["id", "grade", "grader", "time"].map((name) => [name, header?.indexOf(name) ?? -1]));
  const missing = Object.keys(place).filter((name) => place[name] < 0);
  if (missing.length) throw new Error(`it has no column ${missing.join(", ")}`);
  return lines.map((cells, i) => {
    const one = Object.fromEntries(Object.keys(place).map((name) => [name, cells[place[name]] ?? ""]));
    if (!GRADES.includes(one.grade)) throw new Error(`row ${i + 1} has the grade '${one.grade}': use A, B, C or X`);
    if (Number.isNaN(Date.parse(one.time))) throw new Error(`row ${i + 1} has the time '${one.time}': give ISO 8601`);
    return one;
  });
}

async function importCsv(file) {
  let grades;
  try {
    grades = readGrades(await file.text());
  } catch (error) {
    return tell(`${file.name} is not imported: ${error.message}.`, 30);
  }
  const mine = grades.filter((one) => one.grader === state.grader);
  const known = mine.filter((one) => rowOf.has(one.id));
  const newer = known.filter((one) => {
    const here = state.grades.get(rowOf.get(one.id));
    return !here || Date.parse(one.time) > Date.parse(here.time);
  });
  if (newer.length) change(newer.map(({ id, grade, time }) => [rowOf.get(id), { grade, time }]));
  const notes = [`${newer.length} of ${grades.length} grades of ${file.name} are imported`];
  if (mine.length < grades.length) notes.push(`${grades.length - mine.length} are by others than ${state.grader}`);
  if (known.length < mine.length) notes.push(`${mine.length - known.length} are of ids that are not on this page`);
  if (newer.length < known.length) notes.push(`${known.length - newer.length} are not newer than those here`);
  tell(notes.join("; ") + ".", 30);
  show();
}

// ---- keys and clicks

const KEYS = {
  a: () => grade("A"), b: () => grade("B"), c: () => grade("C"), x: () => grade("X"),
  arrowleft: () => turn(-1), arrowright: () => turn(1), n: nextUngraded, u: undo, m: switchView,
  r: () => state.mosaic && gradeRest(),
  s: () => { state.curve = (state.curve + 1) % data.curves.length; show(); },
  f: () => { state.wide = !state.wide; show(); },
  i: () => { state.revealed = !state.revealed; show(); },
  "?": () => element("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" || event.shiftKey) return;
    event.preventDefault();
    return undo();
  }
  if (!KEYS[key] || (event.repeat && !key.startsWith("arrow"))) return;
  event.preventDefault();
  KEYS[key]();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (button) KEYS[button.dataset.key]();
});

element("cells").addEventListener("click", (event) => {
  const cell = event.target.closest("button");
  if (cell) toggle(Number(cell.dataset.row), event.shiftKey ? "C" : element("click").value);
});
element("cells").addEventListener("pointerover", (event) => {
  state.pointed = Number(event.target.closest("button")?.dataset.row ?? NaN);
  if (Number.isNaN(state.pointed)) state.pointed = null;
});
element("cells").addEventListener("pointerleave", () => (state.pointed = null));
element("cells").addEventListener("focusin", () => (state.pointed = null));

element("export").addEventListener("click", exportCsv);
element("import").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", async ({ target }) => {
  if (target.files.length) await importCsv(target.files[0]);
  target.value = "";
});

addEventListener("resize", () => state.grader && state.mosaic && show());
addEventListener("beforeunload", (event) => state.unsaved && event.preventDefault());
addEventListener("storage", (event) => { // another tab of the same grader
  if (event.key !== keyOf(state.grader) || !state.grader) return;
  restore();
  state.steps = [];
  show();
});

// ---- start

function recognise() {
  const kept = stored(element("grader").value.trim());
  element("seed").value = kept?.seed ?? data.seed;
  const number = Object.keys(kept?.grades ?? {}).length;
  element("known-grader").textContent = kept ? `${number} of ${COUNT} are graded under this name in this browser.` : "";
}

function begin() {
  state.grader = element("grader").value.trim();
  state.seed = Number(element("seed").value);
  state.order = shuffled(COUNT, state.seed);
  restore();
  save();
  const first = state.order.findIndex((row) => !state.grades.has(row));
  element("about").textContent = `${data.about} You grade as ${state.grader}, in the random order of seed ${state.seed}.`;
  move(first < 0 ? 0 : first);
}

data.curves.forEach(({ name }, curve) => {
  const button = make("button");
  const figure = make("figure");
  figure.append(make("canvas"));
  button.append(figure, name);
  button.addEventListener("click", () => { state.curve = curve; show(); });
  element("panels").append(button);
});
element("field").hidden = !data.has_field;
element("grader").addEventListener("input", recognise);
element("start").addEventListener("cancel", (event) => event.preventDefault());
element("start").querySelector("form").addEventListener("submit", (event) => {
  if (!element("grader").value.trim()) return event.preventDefault();
  begin();
});
try {
  element("grader").value = localStorage.getItem("lens-ssl grader") ?? "";
} catch {
  // a browser that keeps nothing says so when it is asked to
}
recognise();
element("start").showModal();
