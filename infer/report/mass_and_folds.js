// The figures of what stands beside the score: the mass off the labels, folds side by side, losses while training.
function bars(id, x, y, title, hover, look = "accent") {
  chart(id, () => ({
    traces: [{ type: "bar", x, y, marker: { color: colour(look) }, hovertemplate: hover + "<extra></extra>" }],
    layout: { xaxis: { title: axisTitle(title) }, yaxis: { title: axisTitle("rows") } },
  }));
}
if (data.mass) {
  $("mass-words").textContent =
    `Half of the rows have ${data.mass.median.toFixed(3)} or more of the probability on the labels.`;
  bars("chart-mass", middles(data.mass.edges), data.mass.mass, "probability on the labels", "%{x:.2f}: %{y:,} rows");
  bars(
    "chart-other",
    middles(data.mass.decades),
    data.mass.other,
    "log10 of p_other",
    "10^%{x:.1f}: %{y:,} rows",
    "c1",
  );
  if (data.mass.strays.length) {
    chart("chart-strays", () => {
      const strays = [...data.mass.strays].reverse();
      return {
        traces: [
          {
            type: "bar",
            orientation: "h",
            x: strays.map((stray) => stray[1]),
            y: strays.map((stray) => JSON.stringify(stray[0])),
            marker: { color: colour("c1") },
            hovertemplate: "%{x:.5f}<extra></extra>",
          },
        ],
        layout: {
          xaxis: { nticks: 4, rangemode: "tozero" },
          yaxis: { type: "category", tickfont: { color: colour("ink") } },
        },
      };
    });
  } else $("chart-strays").closest("figure").hidden = true;
}

if (data.folds || data.training) {
  $("folds-card").hidden = !data.folds;
  $("losses-card").hidden = !data.training;
}
if (data.folds)
  chart("chart-folds", () => {
    const losses = data.folds.map((fold) => fold.log_loss),
      mean = losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
    return {
      traces: [
        {
          type: "scatter",
          mode: "markers",
          x: data.folds.map((fold) => "fold " + fold.fold),
          y: losses,
          cliponaxis: false,
          customdata: data.folds.map((fold) => [fold.rows, fold.accuracy]),
          marker: { size: 13, color: colour("accent") },
          hovertemplate:
            "log loss %{y:.4f}<br>accuracy %{customdata[1]:.3f}<br>%{customdata[0]:,} rows<extra></extra>",
        },
      ],
      layout: {
        xaxis: { type: "category" },
        yaxis: { title: axisTitle("log loss"), nticks: 6 },
        shapes: [
          {
            type: "line",
            xref: "paper",
            x0: 0,
            x1: 1,
            y0: mean,
            y1: mean,
            line: { color: colour("soft"), dash: "dot" },
          },
        ],
      },
    };
  });
if (data.training)
  chart("chart-losses", () => {
    const traces = [];
    Object.entries(data.training).forEach(([fold, lines], at) => {
      for (const [name, points] of Object.entries(lines)) {
        if (!points.length) continue;
        traces.push({
          type: "scatter",
          mode: name === "train" ? "lines" : "lines+markers",
          x: points.map((point) => point[0]),
          y: points.map((point) => point[1]),
          name: fold,
          legendgroup: fold,
          showlegend: name === "train" || !lines.train.length,
          opacity: name === "train" ? 0.55 : 1,
          line: { color: labelColour(at), width: name === "train" ? 1 : 2.5 },
          marker: { size: 9 },
          hovertemplate: `${name === "train" ? "training" : "held-out"} %{y:.4f} at step %{x}`,
        });
      }
    });
    return {
      traces,
      layout: { xaxis: { title: axisTitle("step"), rangemode: "tozero" }, yaxis: { title: axisTitle("log loss") } },
    };
  });
