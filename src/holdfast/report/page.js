// Plots take the colours of the reader or of paper, and the key's buttons show or hide a penalty in all of them.
(() => {
  const plots = [...document.querySelectorAll(".plotly-graph-div")];
  if (!plots.length || !window.Plotly) return;
  const INK = "{{ ink }}";
  const PAGE = 680; // pixels between the margins of A4

  function paint(ink, paper) {
    for (const plot of plots) {
      Plotly.relayout(plot, { "font.color": ink, "hoverlabel.bgcolor": paper, "hoverlabel.font.color": ink });
      plot.data.forEach((trace, i) => {
        trace.plain ??= (trace.marker?.color ?? trace.line?.color) === INK;
        if (!trace.plain) return;
        Plotly.restyle(plot, { "marker.color": ink, "line.color": ink, "error_x.color": ink, "error_y.color": ink }, [i]);
      });
    }
  }

  function screen() {
    const style = getComputedStyle(document.documentElement);
    paint(style.getPropertyValue("--ink").trim(), style.getPropertyValue("--paper").trim());
  }

  function print() {
    paint(INK, "#fff");
    document.querySelectorAll("details").forEach((one) => (one.open = true));
    for (const plot of plots) Plotly.relayout(plot, { width: plot.closest(".curves") ? PAGE / 2 - 16 : PAGE });
  }

  function toggle({ dataset: { key }, ariaPressed }) {
    const shown = ariaPressed !== "true";
    buttons.filter((button) => button.dataset.key === key).forEach((button) => (button.ariaPressed = shown));
    for (const plot of plots) {
      const own = plot.data.flatMap((trace, i) => (trace.meta === key ? [i] : []));
      if (own.length) Plotly.restyle(plot, { visible: shown }, own);
    }
  }

  const buttons = [...document.querySelectorAll(".key button")];
  buttons.forEach((button) => button.addEventListener("click", () => toggle(button)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", screen);
  addEventListener("beforeprint", print);
  addEventListener("afterprint", () => {
    screen();
    for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
  });
  screen();
})();
