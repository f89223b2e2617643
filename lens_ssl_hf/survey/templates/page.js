// The views of grades.js: pictures, one by one or as a mosaic, keys and clicks.

const CELL = 72; // least side of a mosaic's pictures in CSS pixels
const PER_PAGE = 100; // most pictures of a mosaic
const GAP = 4;
const KEPT = 400; // decoded pictures that are kept

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
  const row = pointedRow();
  if (state.mosaic && row !== null) state.at = state.order.indexOf(row);
  state.mosaic = !state.mosaic;
  move(state.at);
}

// ---- views

function show() {
  element("one").hidden = state.mosaic;
  element("mosaic").hidden = !state.mosaic;
  element("switch").firstChild.data = state.mosaic ? "One by one " : "Mosaic ";
  element("stretch").replaceChildren(`Stretch: ${data.curves[state.curve].name} `, make("kbd", "S"));
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
  const facts = { Candidate: `${state.at + 1} of ${COUNT}, in random order of seed ${state.seed}`, ID: rows.id[row] };
  if (rows.ra[row] !== null) facts["RA, Dec"] = `${rows.ra[row].toFixed(5)}, ${rows.dec[row].toFixed(5)}`;
  if (state.revealed) {
    facts.Score = `${rows.score[row].toPrecision(4)}, logit ${rows.logit[row].toFixed(2)}`;
    facts.Listed = rows.rank[row] === null ? `sample ${rows.sample[row]}` : `rank ${rows.rank[row]}`;
    if (rows.known) facts["Known lens"] = rows.known[row] ?? "no";
  }
  const items = Object.entries(facts).flatMap(([name, value]) => [make("dt", name), make("dd", value)]);
  element("facts").replaceChildren(...items);
  element("reveal").firstChild.data = state.revealed ? "Hide score " : "Show score ";
  element("viewer").hidden = !rows.viewer[row];
  if (rows.viewer[row]) element("viewer").href = rows.viewer[row];
  for (const ahead of [1, 2]) {
    const next = state.order[state.at + ahead];
    if (next !== undefined && rows.picture[next]) pixelsOf(next);
  }
}

function grid() {
  const { width, height } = element("cells").getBoundingClientRect();
  const fits = (length, side) => Math.max(1, Math.floor((length - 2 * GAP) / (side + GAP)));
  let side = Math.floor(Math.min(width, height) / 2);
  while (side > CELL && fits(width, side) * fits(height, side) < PER_PAGE) side--;
  return { side, columns: fits(width, side), lines: fits(height, side) };
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

// The row of the cell that is under the pointer now, else in focus: no event says that a page turns below the pointer.
function pointedRow() {
  const under = state.pointer && document.elementFromPoint(...state.pointer)?.closest("#cells button");
  const cell = under ?? document.activeElement?.closest("#cells button");
  return cell ? Number(cell.dataset.row) : null;
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

const press = (button, isPressed) => button.setAttribute("aria-pressed", isPressed);

let timer;
function tell(text, seconds = 8) {
  element("message").textContent = text;
  element("message").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => (element("message").hidden = true), 1000 * seconds);
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
  if (document.querySelector("dialog[open]") || event.altKey || event.target.matches("select")) return;
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
for (const kind of ["pointermove", "pointerup"]) { // the latter ends a click, which moves the focus, too
  document.addEventListener(kind, (event) => (state.pointer = [event.clientX, event.clientY]));
}
document.documentElement.addEventListener("pointerleave", () => (state.pointer = null));
element("cells").addEventListener("focusin", () => (state.pointer = null)); // until the pointer moves again

element("export").addEventListener("click", exportCsv);
element("import").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", async ({ target }) => {
  if (target.files.length) await importCsv(target.files[0]);
  target.value = "";
});

addEventListener("resize", () => state.grader && state.mosaic && show());
addEventListener("beforeunload", (event) => state.unsaved && event.preventDefault());
addEventListener("storage", (event) => { // another tab of the same grader
  if (!state.grader || event.key !== keyOf(state.grader) || !event.newValue) return;
  restore();
  state.steps = [];
  show();
});

// ---- start

function recognise() {
  const name = element("grader").value.trim();
  const kept = stored(name);
  if (kept) element("seed").value = kept.seed;
  const number = gradesOf(name).size;
  const others = earlier.size ? `Here are earlier grades by ${[...earlier.keys()].join(", ")}.` : "";
  const isKnown = kept || earlier.has(name);
  element("known-grader").textContent = isKnown ? `${number} of ${COUNT} are graded under this name.` : others;
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
element("start").querySelector("form").addEventListener("submit", begin);
try {
  element("grader").value = localStorage.getItem("lens-ssl grader") ?? "";
} catch {
  // a browser that keeps nothing says so when it is asked to
}
element("seed").value = data.seed;
recognise();
element("start").showModal();
