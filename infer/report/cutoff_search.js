// The controls of the threshold: handles that are dragged, targets and prices that find their place, the saved file.
function dragHandle(handle, which) {
  const valueAt = (event) => {
    const box = $("handles").getBoundingClientRect();
    return nearest(state.mode, Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
  };
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    handle.focus();
    event.preventDefault();
  });
  handle.addEventListener("pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) push(which, valueAt(event));
  });
  handle.addEventListener("pointerup", drawCharts);
  handle.addEventListener("keydown", (event) => {
    const step = {
      ArrowLeft: -0.01,
      ArrowDown: -0.01,
      ArrowRight: 0.01,
      ArrowUp: 0.01,
      PageDown: -0.1,
      PageUp: 0.1,
      Home: -1,
      End: 1,
    }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    push(
      which,
      nearest(
        state.mode,
        Math.max(0, Math.min(1, state.mode.thresholds[state[which]] + step * (event.shiftKey ? 0.1 : 1))),
      ),
    );
  });
}
// One handle pushes the other along rather than crossing it.
function push(which, position) {
  if (which === "high") move({ high: position, low: Math.min(state.low, position) });
  else move({ low: position, high: Math.max(state.high, position) });
}
dragHandle($("handle-low"), "low");
dragHandle($("handle-high"), "high");

// {at: the threshold's place} or, where none reaches the target, {refused: why, and what would help}.
function findTarget(figure, target, sure) {
  const { mode } = state,
    rows = data.cutoffs.rows,
    reaches = [];
  let best = 0,
    needed = Infinity;
  for (const at of mode.thresholds.keys()) {
    const now = figuresAt(mode, at, at),
      right = now.hits[mode.column] ?? 0;
    const value = {
      precision: [right, now.said[mode.column]],
      recall: [right, now.true_[mode.column]],
      accuracy: [now.hits.reduce((sum, hits) => sum + hits, 0), now.all - now.person],
    }[figure];
    if (!value[1]) continue;
    const share = value[0] / value[1];
    best = Math.max(best, share);
    if ((sure ? wilsonLow(...value) : share) >= target) reaches.push(at);
    // Rows of a table like this one at which Wilson's bound meets the target; infer/cutoff_fits.py has the same.
    else if (share > target)
      needed = Math.min(needed, ((Z * Z * target * (1 - target)) / (share - target) ** 2) * (rows / value[1]));
  }
  if (reaches.length) return { at: figure === "recall" ? reaches[reaches.length - 1] : reaches[0] };
  if (mode.label !== null && !figuresAt(mode, 0, 0).true_[mode.column])
    return { refused: `No row is truly ${mode.label}. Label some that are.` };
  if (needed === Infinity)
    return { refused: `The highest seen is ${best.toFixed(3)}. More rows will not help; ask for less.` };
  return {
    refused:
      `As many right as here, about ${count(Math.ceil(needed))} labelled rows would show it: label more, ` +
      "or ask for less.",
  };
}
$("target-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const figure = $("target-figure").value,
    target = Number($("target-value").value),
    sure = $("target-sure").checked;
  $("cutoff-band").checked = state.band = false;
  const { at, refused } = findTarget(figure, target, sure);
  if (refused) {
    $("found").textContent =
      `No threshold gives ${figure} of ${target}${sure ? " with 95 % confidence" : ""} on these ` +
      `${count(data.cutoffs.rows)} rows. ${refused}`;
    return;
  }
  move({ high: at, low: at });
  drawCharts();
  const value = shortest(state.mode.thresholds[at]);
  $("found").textContent =
    figure === "recall"
      ? `${value} is the highest threshold that keeps a recall of ${target}: the fewest false alarms for it.`
      : `${value} is the lowest threshold with ${figure} of ${target}: the most rows for it.`;
});

// Total price for every pair low <= high in one pass: what is under `low` and what is from `high` on add up.
// Where a person's look has no price (null), no row is left to one.
function findCheapest(alarm, miss, person) {
  const { mode } = state,
    places = [...mode.thresholds.keys()],
    at = places.map((place) => figuresAt(mode, place, place));
  let best = null,
    low = 0,
    lowest = Infinity;
  places.forEach((place, index) => {
    const now = at[index];
    if (mode.label === null) {
      if (person === null && now.person) return;
      const wrong = now.all - now.person - now.hits.reduce((sum, hits) => sum + hits, 0),
        price = alarm * wrong + (person ?? 0) * now.person;
      if (best === null || price < best.price) best = { price, low: place, high: place };
      return;
    }
    const column = mode.column,
      alarms = alarm * (now.said[column] - now.hits[column]),
      missed = miss * (now.true_[column] - now.hits[column]);
    if (person === null) {
      if (best === null || alarms + missed < best.price) best = { price: alarms + missed, low: place, high: place };
      return;
    }
    if (missed + person * now.said[column] <= lowest) [lowest, low] = [missed + person * now.said[column], place];
    const price = alarms - person * now.said[column] + lowest;
    if (best === null || price < best.price) best = { price, low, high: place };
  });
  return best;
}
$("cost-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const price = (id) => ($(id).value === "" ? null : Math.max(0, Number($(id).value)));
  const person = price("cost-person"),
    best = findCheapest(price("cost-alarm") ?? 0, price("cost-miss") ?? 0, person);
  $("cutoff-band").checked = state.band = best.low !== best.high;
  move({ high: best.high, low: best.low });
  drawCharts();
  $("found").textContent =
    `The cheapest: ${Number(best.price.toFixed(2)).toLocaleString("en-US")} in all, ` +
    `${(best.price / data.cutoffs.rows).toFixed(3)} a row.` +
    (state.mode.label === null && person === null ? " Price a person's look to leave rows to one." : "");
});

$("cutoff-band").addEventListener("change", (event) => {
  state.band = event.target.checked;
  move({ low: state.band ? nearest(state.mode, Math.max(0, state.mode.thresholds[state.high] - 0.15)) : state.high });
  drawCharts();
});
$("save").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([$("decision").textContent], { type: "application/yaml" }));
  const link = make("a", { href: url, download: "decision.yaml" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});

function chooseMode(position) {
  state.mode = modes[position];
  state.band = false;
  $("cutoff-band").checked = false;
  const one = state.mode.label !== null;
  fillSelect(
    $("target-figure"),
    one
      ? [
          ["precision", "precision"],
          ["recall", "recall"],
        ]
      : [["accuracy", "accuracy"]],
  );
  $("cost-alarm-name").textContent = one ? "a false alarm costs" : "a wrong answer costs";
  $("cost-miss-field").hidden = !one;
  $("found").textContent = "";
  const start = nearest(state.mode, one ? 0.5 : 0);
  move({ high: start, low: start });
  drawCharts();
}
fillSelect(
  $("cutoff-mode"),
  modes.map((mode, at) => [
    at,
    mode.label === null ? "the likeliest label, if it is sure enough" : `the probability of ${mode.label}`,
  ]),
);
$("cutoff-mode").addEventListener("change", (event) => chooseMode(Number(event.target.value)));
for (const form of ["target-form", "cost-form"]) $(form).hidden = !data.cutoffs.labelled;
document.querySelector(".find h3").hidden = !data.cutoffs.labelled;
$("cutoff-mode").value = size === 2 ? modes.length - 1 : 0;
chooseMode(Number($("cutoff-mode").value));

const BARS = 20; // every page has these edges among its thresholds
// What a threshold parts: right from wrong for the likeliest label, one label's rows from the others' for that label.
function cutoffBars(mode) {
  if (!data.cutoffs.labelled) return [["rows", "soft", () => true]];
  if (mode.label === null)
    return [
      ["right", "good", (truth, given) => truth === given],
      ["wrong", "bad", (truth, given) => truth !== given],
    ];
  const rest = size === 2 ? LABELS[1 - mode.column] : "another label";
  return [
    [`truly ${rest}`, "soft", (truth) => truth !== mode.column],
    [`truly ${mode.label}`, "c" + (mode.column % 8), (truth) => truth === mode.column],
  ];
}

chart("chart-cutoff", () => {
  const { mode } = state;
  const cells = size * size;
  const edges = Array.from({ length: BARS + 1 }, (_, at) => nearest(mode, at / BARS));
  edges[BARS] = mode.thresholds.length;
  const bars = edges.slice(1).map((edge, at) => {
    const from = edges[at] * cells;
    return Array.from({ length: cells }, (_, cell) => mode.before[edge * cells + cell] - mode.before[from + cell]);
  });
  return {
    traces: cutoffBars(mode).map(([name, look, counts]) => ({
      type: "bar",
      x: bars.map((_, at) => (at + 0.5) / BARS),
      y: bars.map((bar) =>
        bar.reduce((sum, n, cell) => sum + (counts(Math.floor(cell / size), cell % size) ? n : 0), 0),
      ),
      name,
      showlegend: data.cutoffs.labelled,
      marker: { color: colour(look) },
      hovertemplate: `%{y:,} rows at %{x:.2f}<extra>${name === "rows" ? "" : name}</extra>`,
    })),
    layout: {
      margin: { l: 46, r: 14, t: 26, b: 58, autoexpand: false },
      xaxis: { range: [0, 1], automargin: false, tickvals: unit.tickvals },
      yaxis: { automargin: false, nticks: 5, tickformat: "~s" },
    },
  };
});
