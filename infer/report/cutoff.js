// The threshold: counts between neighbouring thresholds become figures for any place of the two handles.
const size = LABELS.length;
const modes = data.cutoffs.modes.map(unpack);
const state = { mode: modes[0], low: 0, high: 0, band: false, name: "" }; // low and high: positions in mode.thresholds

// before[g * cells + c]: rows of cell c (true column x L + column otherwise given) whose score is under threshold g.
function unpack({ label, thresholds, counts }) {
  const cells = size * size,
    before = new Int32Array((thresholds.length + 1) * cells);
  for (let at = 0; at < counts.length; at += 3) before[(counts[at] + 1) * cells + counts[at + 1]] += counts[at + 2];
  for (let at = cells; at < before.length; at += 1) before[at] += before[at - cells];
  return { label, column: LABELS.indexOf(label), thresholds, before };
}

// {confusion: L x (L + 1), the last column a person's; rows from high on, of the label; ...} at two thresholds.
function figuresAt(mode, low, high) {
  const cells = size * size,
    end = mode.thresholds.length * cells;
  const confusion = Array.from({ length: size }, () => new Array(size + 1).fill(0));
  for (let cell = 0; cell < cells; cell += 1) {
    const truth = Math.floor(cell / size),
      otherwise = cell % size;
    const under = mode.before[low * cells + cell],
      upTo = mode.before[high * cells + cell];
    const above = mode.before[end + cell] - upTo;
    if (mode.label === null) {
      confusion[truth][otherwise] += above;
      confusion[truth][size] += upTo;
    } else {
      confusion[truth][otherwise] += under;
      confusion[truth][mode.column] += above;
      confusion[truth][size] += upTo - under;
    }
  }
  return { confusion, ...score(confusion, mode) };
}

// All but `answered` are of the answered rows, as infer/cutoffs.py says them; null where undefined.
function score(confusion, mode) {
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const said = LABELS.map((_, column) => sum(confusion.map((row) => row[column])));
  const true_ = confusion.map((row) => sum(row.slice(0, size))),
    hits = LABELS.map((_, column) => confusion[column][column]);
  const answered = sum(said),
    all = answered + sum(confusion.map((row) => row[size]));
  const columns =
    mode.label === null ? LABELS.map((_, at) => at).filter((at) => said[at] + true_[at] > 0) : [mode.column];
  const mean = (above, under) => {
    if (!columns.length || (columns.length === 1 && !under(columns[0]))) return null;
    return sum(columns.map((at) => (under(at) ? above(at) / under(at) : 0))) / columns.length;
  };
  const right = mode.label === null ? sum(hits) : hits[mode.column],
    rows = mode.label === null ? answered : said[mode.column];
  const negatives = mode.label === null ? 0 : answered - true_[mode.column];
  return {
    all,
    answered: answered / all,
    person: all - answered,
    accuracy: answered ? sum(hits) / answered : null,
    precision: mean(
      (at) => hits[at],
      (at) => said[at],
    ),
    recall: mean(
      (at) => hits[at],
      (at) => true_[at],
    ),
    f1: mean(
      (at) => 2 * hits[at],
      (at) => said[at] + true_[at],
    ),
    low: wilsonLow(right, rows),
    said,
    true_,
    hits,
    alarms: negatives ? (said[mode.column] - hits[mode.column]) / negatives : null,
  };
}

// What a share is at least, 95 % one-sided. Source: Wilson 1927, equation 4; infer/intervals.py has the same.
const Z = 1.6448536269514722;
function wilsonLow(right, rows) {
  if (!rows) return null;
  const share = right / rows;
  return (
    (share + (Z * Z) / (2 * rows) - Z * Math.sqrt((share * (1 - share)) / rows + (Z * Z) / (4 * rows * rows))) /
    (1 + (Z * Z) / rows)
  );
}

function operatingPoint() {
  const { mode } = state;
  if (mode.label === null || !data.cutoffs.labelled || state.band) return null;
  if (curveMethods.length > 1 && $("curve-label").value !== mode.label) return null;
  const now = figuresAt(mode, state.low, state.high);
  return now.recall === null || now.alarms === null ? null : now;
}

function nearest(mode, value) {
  let low = 0,
    high = mode.thresholds.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (mode.thresholds[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - mode.thresholds[low - 1] < mode.thresholds[low] - value ? low - 1 : low;
}

// Without a band, and for the likeliest label, both handles are one.
function move({ low = state.low, high = state.high }) {
  state.high = high;
  state.low = state.band && state.mode.label !== null ? Math.min(low, high) : high;
  showCutoff();
}

function showCutoff() {
  const { mode, low, high } = state,
    now = figuresAt(mode, low, high),
    thresholds = mode.thresholds;
  const places = { "handle-low": thresholds[low], "handle-high": thresholds[high] };
  for (const [id, value] of Object.entries(places)) {
    const handle = $(id);
    handle.style.left = 100 * value + "%";
    handle.setAttribute("aria-valuenow", value);
    handle.firstElementChild.textContent = shortest(value);
  }
  $("handle-low").hidden = !state.band || mode.label === null;
  const from = mode.label === null ? 0 : thresholds[low];
  $("band").style.left = 100 * from + "%";
  $("band").style.width = 100 * (thresholds[high] - from) + "%";
  $("band-switch").hidden = mode.label === null;
  showWords(now);
  showTiles(now);
  showMatrix(now);
  $("decision").textContent = decisionText(now);
}
const shortest = (value) => String(Number(value.toFixed(4)));

function showWords(now) {
  const { mode, low, high } = state;
  $("cutoff-words").textContent = mode.label === null ? wordsOfLikeliest(now) : wordsOfLabel(now, mode, low === high);
}
const basis = data.cutoffs.calibrated ? ", after calibration," : "";

function wordsOfLikeliest(now) {
  if (now.person === 0) return "Every row gets its likeliest label.";
  const at = shortest(state.mode.thresholds[state.high]);
  return (
    `A row gets its likeliest label where that one’s probability${basis} is ${at} or more. ` +
    `${count(now.person)} of ${count(now.all)} rows are left to a person.`
  );
}

function wordsOfLabel(now, mode, single) {
  const at = shortest(mode.thresholds[state.high]);
  const under = shortest(mode.thresholds[state.low]);
  const rest = size === 2 ? LABELS[1 - mode.column] : "the likeliest other label";
  const between = `below ${under}. The ${count(now.person)} rows between are left to a person.`;
  return (
    `A row is ${mode.label} where its probability${basis} is ${at} or more, and ${rest} ` +
    (single ? "otherwise." : between)
  );
}

function showTiles(now) {
  const tile = (name, value, note) =>
    make(
      "div",
      { className: "tile", "data-figure": name },
      make("span", { textContent: name }),
      make("b", { textContent: value }),
      make("small", { textContent: note }),
    );
  const mean = state.mode.label === null ? "mean over labels" : `of ${state.mode.label}`;
  const tiles = [
    tile("share answered", share(now.answered), `${count(now.all - now.person)} of ${count(now.all)} rows`),
  ];
  if (data.cutoffs.labelled) {
    const bound = now.low === null ? "" : `, at least ${fixed(now.low)}`;
    const precision = state.mode.label === null ? mean : mean + bound,
      accuracy = state.mode.label === null ? "of answered rows" + bound : "of answered rows";
    tiles.unshift(
      tile("precision", fixed(now.precision), precision),
      tile("recall", fixed(now.recall), mean),
      tile("F1", fixed(now.f1), mean),
      tile("accuracy", fixed(now.accuracy), accuracy),
    );
  }
  $("cutoff-tiles").replaceChildren(...tiles);
}

function showMatrix(now) {
  const person = now.person > 0,
    names = person ? [...LABELS, "a person"] : LABELS;
  const head = make(
    "tr",
    {},
    make("th", { className: "corner", textContent: data.cutoffs.labelled ? "true ↓ given →" : "given →" }),
    ...names.map((name) => make("th", { scope: "col", textContent: name })),
  );
  const body = LABELS.slice(0, data.cutoffs.labelled ? size : 1).map((label, truth) => {
    const row = now.confusion[truth].slice(0, names.length),
      total = Math.max(
        1,
        row.reduce((sum, rows) => sum + rows, 0),
      );
    return make(
      "tr",
      {},
      make("th", { scope: "row", textContent: data.cutoffs.labelled ? label : "rows" }),
      ...row.map((rows, column) =>
        make(
          "td",
          {
            className: column === size ? "person" : "",
            style: { "--share": column === size ? "0" : (rows / total).toFixed(3) },
          },
          make("b", { textContent: count(rows) }),
          make("small", { textContent: share(rows / total, 0) }),
        ),
      ),
    );
  });
  $("cutoff-matrix").replaceChildren(
    make(
      "table",
      { className: "matrix", style: { "--columns": String(names.length) } },
      make("thead", {}, head),
      make("tbody", {}, ...body),
    ),
  );
}

// Strings as JSON: YAML reads them so, whatever a label is called.
function decisionText(now) {
  const { mode, low, high } = state,
    figures = {};
  for (const name of ["precision", "recall", "f1", "accuracy", "answered"])
    if (now[name] !== null && (data.cutoffs.labelled || name === "answered"))
      figures[name] = Number(now[name].toFixed(4));
  return [
    `rule: cutoff`,
    `labels: [${LABELS.map((label) => JSON.stringify(label)).join(", ")}]`,
    `label: ${mode.label === null ? "null" : JSON.stringify(mode.label)}`,
    `at_least: ${mode.thresholds[high]}`,
    `below: ${mode.thresholds[low]}`,
    `rows: ${data.cutoffs.rows}`,
    `report: ${JSON.stringify(data.title)}`,
    "seen:",
    ...Object.entries(figures).map(([name, value]) => `  ${name}: ${value}`),
    "",
  ].join("\n");
}
