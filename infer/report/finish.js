// Last: plotly is unpacked and the figures drawn; colours follow the theme, widths and colours follow paper.
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  drawCharts();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.matches ? "dark" : "light";
  drawCharts();
});

let screenTheme = null;
function toPaper(wanted) {
  const root = document.documentElement;
  paper = wanted;
  if (wanted && screenTheme === null) {
    screenTheme = root.dataset.theme;
    root.dataset.theme = "light";
  } else if (!wanted && screenTheme !== null) {
    root.dataset.theme = screenTheme;
    screenTheme = null;
  }
  drawCharts();
}
matchMedia("print").addEventListener("change", (event) => toPaper(event.matches));
addEventListener("beforeprint", () => toPaper(true));
addEventListener("afterprint", () => toPaper(false));

async function loadPlotly() {
  const packed = Uint8Array.from(atob($("plotly").textContent), (character) => character.charCodeAt(0));
  const source = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(make("script", { textContent: source }));
  drawCharts();
  document.documentElement.dataset.ready = "yes";
}
loadPlotly();
