"use strict";

// What is graded, in which order, and what is kept, exported and imported of it. page.js shows it.
const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows;
const COUNT = rows.id.length;
const GRADES = ["A", "B", "C", "X"];
const COLUMNS = ["id", "ra", "dec", "sample", "inclusion_probability", "grade", "grader", "time"];

const element = (id) => document.getElementById(id);
const rowOf = new Map(rows.id.map((id, row) => [id, row]));
const earlier = new Map(Object.entries(data.graded)); // grader -> id -> {grade, time}, from before this ranking
const state = {
  grader: "", seed: data.seed, order: [], at: 0, // the place in the order
  grades: new Map(), // row -> {grade, time}
  steps: [], // for undo
  mosaic: false, pointer: null, curve: 0, wide: false, revealed: false, unsaved: false,
};

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
  for (const id of Object.keys(earlier.get(state.grader) ?? {})) {
    grades[id] ??= now(null); // it was taken back, and is not to come again
  }
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

const isLater = (one, other) => Date.parse(one.time) > Date.parse(other.time);

// id -> {grade, time}: of what came with the page and what the browser keeps, the later one counts.
function gradesOf(grader) {
  const found = new Map(Object.entries(earlier.get(grader) ?? {}));
  for (const [id, one] of Object.entries(stored(grader)?.grades ?? {})) {
    if (!found.has(id) || !isLater(found.get(id), one)) found.set(id, one);
  }
  return new Map([...found].filter(([, one]) => one.grade));
}

function restore() {
  state.grades = new Map();
  for (const [id, one] of gradesOf(state.grader)) {
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
  const row = pointedRow();
  if (row === null) return tell("Point at a candidate, or move the focus to it with Tab.");
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

// ---- CSV (RFC 4180); text that spreadsheets would take for a formula has a ' in front

const asText = (cell) => (/^'*[=+\-@\t\r]/.test(cell) && !/^-?\d+$/.test(cell) ? "'" + cell : cell);
const ofText = (cell) => (/^'+[=+\-@\t\r]/.test(cell) ? cell.slice(1) : cell);

function writeCsv() {
  const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const lines = [COLUMNS];
  for (let row = 0; row < COUNT; row++) {
    const one = state.grades.get(row);
    if (one) {
      const [id, ...kept] = COLUMNS.slice(0, 5).map((name) => String(rows[name][row] ?? ""));
      lines.push([asText(id), ...kept, one.grade, asText(state.grader), one.time]);
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
    return { ...one, id: ofText(one.id), grader: ofText(one.grader) };
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
  const latest = new Map(); // of each object, since a file may hold several exports
  for (const one of known) {
    if (!latest.has(one.id) || isLater(one, latest.get(one.id))) latest.set(one.id, one);
  }
  const newer = [...latest.values()].filter((one) => {
    const here = state.grades.get(rowOf.get(one.id));
    return !here || isLater(one, here);
  });
  if (newer.length) change(newer.map(({ id, grade, time }) => [rowOf.get(id), { grade, time }]));
  const notes = [`${newer.length} of ${grades.length} grades of ${file.name} are imported`];
  if (mine.length < grades.length) notes.push(`${grades.length - mine.length} are by others than ${state.grader}`);
  if (known.length < mine.length) notes.push(`${mine.length - known.length} are of ids that are not on this page`);
  if (newer.length < known.length) notes.push(`${known.length - newer.length} are not newer than others of the same objects`);
  tell(notes.join("; ") + ".", 30);
  show();
}
