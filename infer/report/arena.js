// The figures of two answers side by side.
const arenaName = (label) => ({ model_a: "a wins", model_b: "b wins" })[label] || label;
if (data.arena) {
  const { winners, lengths, difference, disagreement } = data.arena;
  chart("chart-winners", () => {
    const x = winners.labels.map(arenaName);
    const traces = [
      {
        type: "bar",
        x,
        y: winners.predicted,
        name: "mean probability",
        marker: { color: colour("accent") },
        hovertemplate: "%{y:.3f}",
      },
    ];
    if (winners.true)
      traces.unshift({
        type: "bar",
        x,
        y: winners.true,
        name: "true share",
        marker: { color: colour("soft") },
        hovertemplate: "%{y:.3f}",
      });
    return {
      traces,
      layout: {
        barmode: "group",
        bargap: 0.4,
        xaxis: { type: "category" },
        yaxis: { tickformat: ".0%", rangemode: "tozero" },
      },
    };
  });
  for (const [id, shown] of [
    ["chart-lengths", lengths],
    ["chart-difference", difference],
    ["disagreement-card", disagreement],
  ])
    if (!shown) $(id).closest("figure").hidden = true;
  if (lengths) {
    $("lengths-words").textContent =
      `Characters, by ${lengths.by}. Box: the middle half of the rows, line: median, ends: 5 % and 95 %.`;
    chart("chart-lengths", () => ({
      traces: ["a", "b"].map((side, at) => ({
        type: "box",
        x: lengths.boxes.map((box) => arenaName(box.winner)),
        name: "answer " + side,
        marker: { color: labelColour(at) },
        lowerfence: lengths.boxes.map((box) => box[side][0]),
        q1: lengths.boxes.map((box) => box[side][1]),
        median: lengths.boxes.map((box) => box[side][2]),
        q3: lengths.boxes.map((box) => box[side][3]),
        upperfence: lengths.boxes.map((box) => box[side][4]),
      })),
      layout: {
        boxmode: "group",
        xaxis: { type: "category" },
        yaxis: { title: axisTitle("characters"), rangemode: "tozero" },
      },
    }));
  }
  if (difference)
    chart("chart-difference", () => {
      const line = (y, name, look) => ({
        type: "scatter",
        mode: "lines+markers",
        x: difference.ratio,
        y,
        name,
        customdata: difference.rows,
        cliponaxis: false,
        line: { color: colour(look), width: 2 },
        marker: { size: 7 },
        hovertemplate: "%{y:+.3f}, %{customdata:,} rows",
      });
      const traces = [line(difference.predicted, "predicted", "accent")];
      if (difference.true) traces.unshift(line(difference.true, "true", "soft"));
      const most = Math.ceil(Math.max(...difference.ratio.map(Math.abs), 1)),
        ticks = [];
      const step = Math.max(1, Math.ceil(most / 4));
      for (let power = -Math.floor(most / step) * step; power <= most; power += step) ticks.push(power);
      const words = (power) =>
        power === 0 ? "as long" : `${2 ** Math.abs(power)}× ${power < 0 ? "shorter" : "longer"}`;
      return {
        traces,
        layout: {
          xaxis: { tickvals: ticks, ticktext: ticks.map(words), range: [-most - 0.1, most + 0.1] },
          yaxis: { tickformat: "+.2f" },
        },
      };
    });
  if (disagreement) {
    const none = disagreement.mean < 1e-5;
    $("disagreement-words").textContent = none
      ? "The prediction does not depend on which answer is shown first: both orders agree on every row."
      : `How far the two orders’ probabilities lie apart, 0 to 2; on average ${disagreement.mean.toFixed(3)}.`;
    if (none) $("chart-disagreement").hidden = true;
    else
      bars(
        "chart-disagreement",
        middles(disagreement.edges),
        disagreement.rows,
        "disagreement of the two orders",
        "%{x:.2f}: %{y:,} rows",
      );
  }
}
