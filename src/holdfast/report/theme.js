// Plots take the colours of the reader or of paper, and the key's buttons show or hide a penalty in all of them.
const INK = "{{ ink }}";
const PAGE = 680; // pixels between the margins of A4
const data = JSON.parse(document.getElementById("data").textContent);
const drawn = () => [...document.querySelectorAll(".js-plotly-plot")];

function colors() {
  const style = getComputedStyle(document.documentElement);
  return [style.getPropertyValue("--ink").trim(), style.getPropertyValue("--paper").trim()];
}

function paint(plot, [ink, paper]) {
  Plotly.relayout(plot, { "font.color": ink, "hoverlabel.bgcolor": paper, "hoverlabel.font.color": ink });
  plot.data.forEach((trace) => (trace.plain ??= (trace.marker?.color ?? trace.line?.color) === INK));
  const own = plot.data.flatMap((trace, i) => (trace.plain ? [i] : []));
  const inked = { "marker.color": ink, "line.color": ink, "error_x.color": ink, "error_y.color": ink };
  if (own.length) Plotly.restyle(plot, inked, own);
}

function screen() {
  for (const plot of drawn()) paint(plot, colors());
}

function print() {
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  for (const plot of drawn()) {
    paint(plot, [INK, "#fff"]);
    Plotly.relayout(plot, { width: plot.closest(".curves") ? PAGE / 2 - 16 : PAGE });
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", screen);
addEventListener("beforeprint", print);
addEventListener("afterprint", () => {
  screen();
  for (const plot of drawn()) Plotly.relayout(plot, { width: null, autosize: true });
});
screen();
