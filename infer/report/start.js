"use strict";
// What all parts of the page share: the data, makers of elements, and how a figure looks in light, dark and print.
const data = JSON.parse(document.getElementById("data").textContent);
const LABELS = data.labels;
const $ = (id) => document.getElementById(id);
const share = (value, digits = 1) =>
  value === null || Number.isNaN(value) ? "–" : (100 * value).toFixed(digits) + " %";
const fixed = (value, digits = 3) => (value === null || Number.isNaN(value) ? "–" : value.toFixed(digits));
const count = (value) => value.toLocaleString("en-US");

// Text goes in as text: whatever a row holds, it is never read as HTML.
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") for (const [name, style] of Object.entries(value)) element.style.setProperty(name, style);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
}

function colour(name) {
  return getComputedStyle(document.documentElement)
    .getPropertyValue("--" + name)
    .trim();
}
const labelColour = (column) => colour("c" + (column % 8));

function layout(more = {}) {
  const line = colour("line"),
    muted = colour("muted");
  const axis = {
    gridcolor: line,
    linecolor: line,
    zerolinecolor: line,
    automargin: true,
    fixedrange: true,
    ticks: "",
  };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: muted },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 46, r: 14, t: 12, b: 44 },
    hovermode: "closest",
    legend: {
      orientation: "h",
      x: 0,
      y: 0,
      yref: "container",
      yanchor: "bottom",
      traceorder: "normal",
      font: { color: colour("ink") },
    },
    hoverlabel: { bgcolor: colour("card"), bordercolor: line, font: { color: colour("ink") } },
    bargap: 0.06,
    barmode: "stack",
    dragmode: false,
    ...rest,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
  };
}

// Paper's columns, in CSS pixels: a figure must have its size before the browser lays out the page it is printed on.
const PAPER = { width: 698, gap: 16, padding: 38 };
let paper = false;
function paperSize(element) {
  const grid = element.closest(".pair, .trio");
  const columns = !grid || grid.children.length < 2 ? 1 : grid.matches(".trio") ? 3 : 2;
  const height = element.closest(".plot")
    ? 240
    : element.matches(".tall")
      ? parseInt(element.style.height) || 300
      : 235;
  return { width: (PAPER.width - (columns - 1) * PAPER.gap) / columns - PAPER.padding, height };
}

const charts = []; // functions that draw, called anew when colours or widths change
function chart(id, draw) {
  if (!$(id)) return;
  charts.push(() => {
    const { traces, layout: wanted } = draw();
    Plotly.react(
      $(id),
      traces,
      { ...layout(wanted), ...(paper ? paperSize($(id)) : {}) },
      { displayModeBar: false, responsive: true },
    );
  });
}
const drawCharts = () => {
  if (window.Plotly) charts.forEach((draw) => draw());
};
const axisTitle = (text) => ({ text, standoff: 8, font: { size: 12 } });
const middles = (edges) => edges.slice(1).map((edge, at) => (edge + edges[at]) / 2);
