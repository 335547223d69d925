// Any figures: bars, lines or boxes of named series over one axis.
const value = (figure) => (figure.share ? "%{y:.1%}" : "%{y:,.4~g}");
const shownAt = (figure, name) =>
  `${value(figure)}${figure.rows ? ", %{customdata:,} rows" : ""}<extra>${figure.x_title ? "%{x} " : ""}</extra>`;
const tracesOf = {
  bars: (figure, name, y, at) => ({
    type: "bar",
    x: figure.x.map(String),
    y,
    marker: { color: labelColour(at) },
  }),
  lines: (figure, name, y, at) => ({
    type: "scatter",
    mode: "lines+markers",
    x: figure.x,
    y,
    line: { color: labelColour(at), width: 2 },
    marker: { size: 5 },
  }),
  boxes: (figure, name, boxes, at) => ({
    type: "box",
    x: figure.x.map(String),
    marker: { color: labelColour(at) },
    lowerfence: boxes.map((box) => box[0]),
    q1: boxes.map((box) => box[1]),
    median: boxes.map((box) => box[2]),
    q3: boxes.map((box) => box[3]),
    upperfence: boxes.map((box) => box[4]),
  }),
};
data.figures.forEach((figure, number) =>
  chart("figure-" + number, () => {
    const series = Object.entries(figure.series);
    const traces = series.map(([name, values], at) => ({
      ...tracesOf[figure.kind](figure, name, values, at),
      name,
      ...(figure.kind === "boxes" ? {} : { customdata: figure.rows, hovertemplate: shownAt(figure, name) }),
    }));
    return {
      traces,
      layout: {
        barmode: figure.stacked ? "stack" : "group",
        boxmode: "group",
        bargap: 0.25,
        showlegend: series.length > 1,
        xaxis: {
          type: figure.log ? "log" : figure.kind === "lines" ? "linear" : "category",
          title: axisTitle(figure.x_title),
          nticks: figure.kind === "lines" ? 6 : 0,
          tickangle: figure.kind === "lines" ? 0 : "auto",
        },
        yaxis: { title: axisTitle(figure.y_title), tickformat: figure.share ? ".0%" : ",~g", rangemode: "tozero" },
      },
    };
  }),
);
