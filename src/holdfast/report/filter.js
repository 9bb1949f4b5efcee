// The key's buttons show or hide a penalty in every plot; the form narrows points and table rows to what was asked for.
const buttons = [...document.querySelectorAll(".key button")];

function toggle({ dataset: { key }, ariaPressed }) {
  const shown = ariaPressed !== "true";
  buttons.filter((button) => button.dataset.key === key).forEach((button) => (button.ariaPressed = shown));
  for (const plot of drawn()) {
    const own = plot.data.flatMap((trace, i) => (trace.meta === key ? [i] : []));
    if (own.length) Plotly.restyle(plot, { visible: shown }, own);
  }
}
buttons.forEach((button) => button.addEventListener("click", () => toggle(button)));

const form = document.querySelector(".filters");
const lists = ["x", "y", "text", "customdata", "error_x.array", "error_x.arrayminus", "error_y.array", "error_y.arrayminus"];
const at = (object, path) => path.split(".").reduce((inner, key) => inner?.[key], object);

// A seed asks for single runs: a median has none, unless it is of that run alone.
function wanted({ text, family, seed }) {
  const parts = text.toLowerCase().split(/\s+/).filter(Boolean);
  const named = ({ name, key }) => parts.every((part) => `${name} ${key}`.toLowerCase().replace(/\u00a0/g, " ").includes(part));
  const fits = (run) => named(run) && (!family || run.family === family);
  return {
    point: (id) => fits(data.runs[id]) && (!seed || data.runs[id].seed === seed),
    row: (id) => fits(data.runs[id]) && (!seed || [id, ...(data.runs[id].runs ?? [])].some((one) => data.runs[one].seed === seed)),
  };
}

// Points without an address, of the dotted diagonal for instance, stay. One call for all traces: each call draws anew.
function narrow(plot, wanted) {
  const own = plot.data.flatMap((trace, i) => (trace.customdata ? [i] : []));
  const update = Object.fromEntries(lists.map((path) => [path, []]));
  for (const trace of own.map((i) => plot.data[i])) {
    trace.all ??= Object.fromEntries(lists.map((path) => [path, at(trace, path)]));
    const kept = trace.all.customdata.map(wanted);
    for (const path of lists) {
      const list = trace.all[path];
      update[path].push(Array.isArray(list) ? list.filter((_, j) => kept[j]) : undefined); // undefined: as it was
    }
  }
  if (own.length) Plotly.restyle(plot, update, own);
}

// The cell that spans a penalty's rows stands in the first of them that is shown.
function narrowTable(wanted) {
  let shown = 0;
  for (const body of document.querySelectorAll(".settings tbody")) {
    const rows = [...body.rows];
    const name = body.querySelector("th");
    rows.forEach((row) => (row.hidden = !wanted(row.dataset.run)));
    const left = rows.filter((row) => !row.hidden);
    left[0]?.prepend(name);
    name.rowSpan = left.length || 1;
    shown += left.length;
  }
  return shown;
}

function narrowAll() {
  const asked = { text: "", family: "", seed: "", ...Object.fromEntries(new FormData(form)) };
  const { point, row } = wanted(asked);
  document.querySelectorAll("main .js-plotly-plot").forEach((plot) => narrow(plot, point));
  const rows = document.querySelectorAll(".settings tbody tr").length;
  const shown = narrowTable(row);
  form.querySelector("output").value = shown < rows ? `${shown} of ${rows} settings` : "";
}

if (form) {
  let waiting;
  const soon = (wait) => (clearTimeout(waiting), (waiting = setTimeout(narrowAll, wait)));
  form.hidden = false;
  form.addEventListener("input", (event) => soon(event.target.type === "search" ? 150 : 0));
  form.addEventListener("reset", () => {
    buttons.filter((button) => button.ariaPressed === "false").forEach(toggle);
    soon(0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
}
