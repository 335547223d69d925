// The figures of the score: baselines, curves, reliability, winning probability.
chart("chart-baselines", () => {
  const lines = [...data.baselines].reverse(),
    spans = lines.filter((line) => line[2] !== null);
  return {
    traces: [
      ...spans.map((line) => ({
        type: "scatter",
        mode: "lines",
        x: [line[2], line[3]],
        y: [line[0], line[0]],
        showlegend: false,
        opacity: 0.45,
        line: { color: colour("accent"), width: 7 },
        hovertemplate: "95 % interval, %{x:.4f}<extra></extra>",
      })),
      {
        type: "scatter",
        mode: "markers",
        x: lines.map((line) => line[1]),
        y: lines.map((line) => line[0]),
        marker: {
          size: lines.map((line) => (line[4] ? 13 : 10)),
          color: lines.map((line) => colour(line[4] ? "accent" : "soft")),
        },
        hovertemplate: "%{y}: %{x:.4f}<extra></extra>",
        cliponaxis: false,
        showlegend: false,
      },
    ],
    layout: {
      xaxis: {
        title: axisTitle("log loss"),
        nticks: 6,
        range: padded(lines.flatMap((line) => line.slice(1, 4).filter((value) => value !== null))),
      },
      yaxis: {
        categoryorder: "array",
        categoryarray: lines.map((line) => line[0]),
        type: "category",
        tickfont: { color: colour("ink") },
      },
    },
  };
});

function padded(values) {
  const low = Math.min(...values),
    high = Math.max(...values),
    room = 0.07 * (high - low) || 0.1;
  return [low - room, high + room];
}

const curveMethods = [...new Set((data.curves || []).map((curve) => curve.method))];
const curveLabels = [...new Set((data.curves || []).map((curve) => curve.label))];
function curvesShown() {
  if (curveMethods.length < 2)
    return data.curves.map((curve) => ({ ...curve, name: curve.label, at: LABELS.indexOf(curve.label) }));
  const chosen = $("curve-label").value;
  return data.curves
    .filter((curve) => curve.label === chosen)
    .map((curve) => ({ ...curve, name: curve.method, at: curveMethods.indexOf(curve.method) }));
}
if (data.curves) {
  fillSelect(
    $("curve-label"),
    curveLabels.map((label) => [label, label]),
  );
  $("curve-label").value = curveLabels[curveLabels.length - 1];
  $("curve-label-field").closest("p").hidden = curveMethods.length < 2;
  $("curve-label").addEventListener("change", drawCharts);
}
function curveTraces(kind, area, words, shape) {
  return curvesShown().map((curve) => {
    if (curve.point) {
      // A way that says labels and no more: one place, no curve.
      const [x, y] = kind === "roc" ? curve.point : curve.pr_point;
      return {
        type: "scatter",
        mode: "markers",
        x: [x],
        y: [y],
        name: `${curve.name} (labels only)`,
        marker: { color: labelColour(curve.at), size: 10, symbol: "diamond" },
        hovertemplate: words,
        cliponaxis: false,
      };
    }
    return {
    type: "scatter",
    mode: "lines",
    x: curve[kind][0],
    y: curve[kind][1],
    name: `${curve.name} (${curve[area].toFixed(3)})`,
    line: { color: labelColour(curve.at), width: 2, shape, dash: curve.at < 8 ? "solid" : "dash" },
    hovertemplate: words,
    };
  });
}
const unit = { range: [-0.005, 1.005], tickvals: [0, 0.2, 0.4, 0.6, 0.8, 1] };
const guess = (x, y, at) => ({
  type: "scatter",
  mode: "lines",
  x,
  y,
  showlegend: false,
  hoverinfo: "skip",
  line: { color: at === undefined ? colour("soft") : labelColour(at), width: 1, dash: "dot" },
});
const here = (x, y) => ({
  type: "scatter",
  mode: "markers",
  x: [x],
  y: [y],
  showlegend: false,
  hovertemplate: "the threshold above<extra></extra>",
  marker: { size: 11, color: colour("card"), line: { width: 3, color: colour("ink") } },
  cliponaxis: false,
});
// A long legend takes its own room, not the curves'.
const legendLines = Math.max(0, Math.max(curveMethods.length, curveMethods.length < 2 ? curveLabels.length : 0) - 4);
for (const id of ["chart-roc", "chart-pr"])
  if ($(id) && legendLines) $(id).style.height = `${360 + 18 * legendLines}px`;
chart("chart-roc", () => {
  const traces = [
    guess([0, 1], [0, 1]),
    ...curveTraces("roc", "auc", "false alarms %{x:.3f}<br>found %{y:.3f}", "linear"),
  ];
  const point = operatingPoint();
  if (point) traces.push(here(point.alarms, point.recall));
  return {
    traces,
    layout: {
      xaxis: { ...unit, title: axisTitle("false positive rate") },
      yaxis: { ...unit, title: axisTitle("true positive rate") },
    },
  };
});
chart("chart-pr", () => {
  const shown = curvesShown();
  const levels = curveMethods.length < 2 ? shown : shown.slice(0, 1);
  const traces = [
    ...levels.map((curve) =>
      guess([0, 1], [curve.share, curve.share], curveMethods.length < 2 ? curve.at : undefined),
    ),
    ...curveTraces("pr", "average_precision", "recall %{x:.3f}<br>precision %{y:.3f}", "vh"),
  ];
  const point = operatingPoint();
  if (point && point.precision !== null) traces.push(here(point.recall, point.precision));
  return {
    traces,
    layout: { xaxis: { ...unit, title: axisTitle("recall") }, yaxis: { ...unit, title: axisTitle("precision") } },
  };
});

const trustWays = [...new Set((data.reliability || []).map((table) => table.method))];
if (data.reliability) {
  fillSelect(
    $("trust-way"),
    trustWays.map((name) => [name, name]),
  );
  $("trust-way-field").closest("p").hidden = trustWays.length < 2;
  $("trust-way").addEventListener("change", drawCharts);
}
chart("chart-reliability", () => {
  const tables = data.reliability.filter((table) => table.method === $("trust-way").value);
  const names = tables.length > 1 ? ["soft", "accent"] : ["accent"];
  const traces = [guess([0, 1], [0, 1])];
  tables.forEach((table, at) => {
    const look = { name: `${table.name} (error ${table.error.toFixed(3)})`, legendgroup: table.name };
    const x = table.bins.map((bin) => bin.confidence),
      rows = table.bins.map((bin) => bin.rows);
    traces.push(
      {
        ...look,
        type: "scatter",
        mode: "lines+markers",
        x,
        y: table.bins.map((bin) => bin.accuracy),
        customdata: rows,
        line: { color: colour(names[at]), width: 2 },
        marker: { size: 7 },
        cliponaxis: false,
        hovertemplate: "sure %{x:.3f}<br>right %{y:.3f}<br>%{customdata:,} rows",
      },
      {
        ...look,
        type: "bar",
        x,
        y: rows,
        yaxis: "y2",
        showlegend: false,
        marker: { color: colour(names[at]) },
        width: 0.022,
        offset: tables.length > 1 ? (at - 1) * 0.024 : -0.011,
        hovertemplate: "%{y:,} rows<extra></extra>",
      },
    );
  });
  const from =
    Math.min(...tables.flatMap((table) => table.bins.map((bin) => bin.confidence)), 1 / LABELS.length) -
    0.03;
  return {
    traces,
    layout: {
      barmode: "overlay",
      xaxis: {
        range: [Math.max(-0.01, from), 1.01],
        anchor: "y2",
        title: axisTitle("probability of the likeliest label"),
      },
      yaxis: { range: [-0.01, 1.01], domain: [0.27, 1], title: axisTitle("share that is right") },
      yaxis2: {
        domain: [0, 0.2],
        fixedrange: true,
        gridcolor: colour("line"),
        nticks: 3,
        automargin: true,
        title: axisTitle("rows"),
      },
    },
  };
});
chart("chart-confidence", () => {
  const shown = data.confidence,
    x = middles(shown.edges),
    width = shown.edges[1] - shown.edges[0];
  const bars = [
    ["right", "good"],
    ["wrong", "bad"],
    ["unknown", "soft"],
  ].filter(([name]) => shown[name].some((rows) => rows > 0));
  return {
    traces: bars.map(([name, look]) => ({
      type: "bar",
      x,
      y: shown[name],
      width: width * 0.94,
      name: name === "unknown" ? "label unknown" : name,
      marker: { color: colour(look) },
      hovertemplate: `%{x:.2f}: %{y:,} ${name}<extra></extra>`,
    })),
    layout: {
      xaxis: { range: [shown.edges[0], 1], title: axisTitle("probability of the likeliest label") },
      yaxis: { title: axisTitle("rows") },
    },
  };
});
