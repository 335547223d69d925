// The rows: found by words, sorted by loss or confidence, a page at a time.
const PAGE = 25;
const rows = data.rows.rows.map(([id, truth, loss, probs, other, texts]) => {
  const confidence = Math.max(...probs),
    predicted = probs.indexOf(confidence);
  const words = [id, LABELS[predicted], truth < 0 ? "" : LABELS[truth], ...texts].join("\n").toLowerCase();
  return { id, truth, loss, probs, other, texts, confidence, predicted, words };
});
const anyTruth = rows.some((row) => row.truth >= 0);
let shownRows = [],
  shownCount = PAGE;

const orders = {
  loss: ["most wrong first", (a, b) => (b.loss ?? -1) - (a.loss ?? -1)],
  unsure: ["least sure first", (a, b) => a.confidence - b.confidence],
  sure: ["surest first", (a, b) => b.confidence - a.confidence],
  best: ["most right first", (a, b) => (a.loss ?? Infinity) - (b.loss ?? Infinity)],
};
if (!anyTruth) {
  delete orders.loss;
  delete orders.best;
}
fillSelect(
  $("sort"),
  Object.entries(orders).map(([name, [words]]) => [name, words]),
);
const filters = { all: ["all", () => true] };
if (anyTruth) {
  filters.wrong = ["wrong", (row) => row.truth >= 0 && row.truth !== row.predicted];
  filters.right = ["right", (row) => row.truth === row.predicted];
}
filters.person = ["left to a person at the threshold above", leftToPerson];
LABELS.slice(0, 12).forEach((label, column) => {
  filters["predicted" + column] = [`predicted ${label}`, (row) => row.predicted === column];
  if (anyTruth) filters["truth" + column] = [`truly ${label}`, (row) => row.truth === column];
});
fillSelect(
  $("show"),
  Object.entries(filters).map(([name, [words]]) => [name, words]),
);

function leftToPerson(row) {
  const { mode, low, high } = state,
    score = mode.label === null ? row.confidence : row.probs[mode.column];
  return score < mode.thresholds[high] && (mode.label === null || score >= mode.thresholds[low]);
}

function findRows() {
  const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean),
    keep = filters[$("show").value][1];
  shownRows = rows
    .filter((row) => keep(row) && wanted.every((word) => row.words.includes(word)))
    .sort(orders[$("sort").value][1]);
  shownCount = PAGE;
  showRows();
}
function showRows() {
  $("row-list").replaceChildren(...shownRows.slice(0, shownCount).map(rowElement));
  $("rows-count").textContent = `${count(shownRows.length)} found`;
  $("more").hidden = shownRows.length <= shownCount;
}

function rowElement(row) {
  const known = row.truth >= 0,
    right = row.truth === row.predicted;
  const verdict = make(
    "div",
    { className: "verdict" },
    make("b", { textContent: LABELS[row.predicted] }),
    known
      ? make("span", {
          className: right ? "hit" : "miss",
          textContent: right ? " ✓" : ` ✗ truly ${LABELS[row.truth]}`,
        })
      : null,
  );
  const order = row.probs
    .map((_, column) => column)
    .sort((a, b) => row.probs[b] - row.probs[a])
    .slice(0, 5);
  const meters = order.map((column) =>
    make(
      "div",
      { className: "meter" },
      make("span", { textContent: LABELS[column], title: LABELS[column] }),
      make("i", { style: { "--p": String(row.probs[column]), "--c": `var(--c${column % 8})` } }),
      make("span", { textContent: row.probs[column].toFixed(3) }),
    ),
  );
  const notes = [
    row.loss === null ? "" : `loss ${row.loss.toFixed(2)}`,
    row.other > 0 ? `p_other ${row.other.toFixed(3)}` : "",
    `id ${row.id}`,
  ];
  const pair = data.rows.columns.length > 1;
  const texts = data.rows.columns.map((name, at) =>
    make(
      "div",
      { className: pair && at === 0 && data.rows.columns.length % 2 ? "whole" : "" },
      pair ? make("h4", { textContent: name }) : null,
      make("div", { className: "text" }, ...marked(row.texts[at])),
    ),
  );
  const block = make("div", { className: pair ? "texts two" : "texts", title: "show all of it" }, ...texts);
  const item = make(
    "li",
    { className: `card row ${known ? (right ? "right" : "wrong") : ""}` },
    block,
    make(
      "div",
      {},
      verdict,
      ...meters,
      make("div", { className: "id", textContent: notes.filter(Boolean).join(" · ") }),
    ),
  );
  block.addEventListener("click", () => {
    if (!String(getSelection())) item.classList.toggle("open");
  });
  return item;
}

// The text's pieces, what was searched for in a mark of its own.
function marked(text) {
  const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean),
    small = text.toLowerCase();
  if (!wanted.length || small.length !== text.length) return [text];
  const pieces = [];
  let from = 0;
  while (from < text.length && pieces.length < 200) {
    const places = wanted
      .map((word) => [small.indexOf(word, from), word.length])
      .filter(([at]) => at >= 0)
      .sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    if (!places.length) break;
    const [at, length] = places[0];
    pieces.push(text.slice(from, at), make("mark", { textContent: text.slice(at, at + length) }));
    from = at + length;
  }
  return [...pieces, text.slice(from)];
}

const kept = rows.length < data.rows.all;
$("rows-words").textContent = kept
  ? `The ${count(rows.length)} most useful of ${count(data.rows.all)} rows: ` +
    `${anyTruth ? "the most wrong, " : ""}the least sure, and some of the rest evenly. Long texts lose their middle.`
  : `All ${count(rows.length)} rows. Click a text to see all of it.`;
for (const id of ["sort", "show"]) $(id).addEventListener("change", findRows);
$("search").addEventListener("input", findRows);
$("more").addEventListener("click", () => {
  shownCount += 2 * PAGE;
  showRows();
});
findRows();
