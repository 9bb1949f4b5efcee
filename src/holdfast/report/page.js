// Plots take the reader's colours, and the key's buttons show or hide a penalty in all of them.
(() => {
  const plots = [...document.querySelectorAll(".plotly-graph-div")];
  if (!plots.length || !window.Plotly) return;
  const INK = "{{ ink }}";

  function paint() {
    const style = getComputedStyle(document.documentElement);
    const [ink, paper] = ["--ink", "--paper"].map((name) => style.getPropertyValue(name).trim());
    for (const plot of plots) {
      Plotly.relayout(plot, { "font.color": ink, "hoverlabel.bgcolor": paper, "hoverlabel.font.color": ink });
      plot.data.forEach((trace, i) => {
        trace.plain ??= (trace.marker?.color ?? trace.line?.color) === INK;
        if (trace.plain) Plotly.restyle(plot, { "marker.color": ink, "line.color": ink, "error_x.color": ink, "error_y.color": ink }, [i]);
      });
    }
  }

  function toggle(button) {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const plot of plots) {
      const own = plot.data.flatMap((trace, i) => (trace.meta === button.dataset.key ? [i] : []));
      if (own.length) Plotly.restyle(plot, { visible: shown }, own);
    }
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  paint();
  dark.addEventListener("change", paint);
  addEventListener("beforeprint", paint);
  addEventListener("afterprint", paint);
  document.querySelectorAll(".key button").forEach((button) => button.addEventListener("click", () => toggle(button)));
})();
