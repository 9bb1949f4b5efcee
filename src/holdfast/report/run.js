// The panel with one setting or one run: opened by a click on a point, by a link, or by the page's own address.
const panel = document.getElementById("run");
const body = document.getElementById("run-body");
const COLORSCALE = "Cividis";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function table(head, lines) {
  const row = (cells, tag) => element("tr", {}, ...cells.map((cell, i) => element(i && tag === "td" ? "td" : "th", {}, cell)));
  const made = element("table", {}, element("thead", {}, row(head, "th")), element("tbody", {}, ...lines.map((line) => row(line, "td"))));
  const whole = element("div", { class: "table" }, element("div", { class: "scroll", tabindex: 0, role: "region" }, made));
  whole.append(copyButton("Copy table", () => cells(made)));
  return whole;
}

function layout(height, x, y) {
  const made = structuredClone(data.layout);
  made.height = height;
  made.xaxis.title.text = x;
  made.yaxis.title.text = y;
  return made;
}

const later = []; // plots to draw once their places are on the page and have a width

function figure(title, traces, drawing) {
  const place = element("div");
  later.push(() => Plotly.newPlot(place, traces, drawing, data.config).then(() => paint(place, colors())));
  return element("figure", {}, element("figcaption", {}, title), place);
}

function curve(title, runs) {
  const found = runs.flatMap((run) => (run.curves ?? []).filter((one) => one.title === title).map((one) => [run, one]));
  const traces = found.map(([run, { x, y }]) => ({
    x, y, mode: x.length > 30 ? "lines" : "lines+markers", line: { width: 1.8, color: run.color ?? INK }, marker: { size: 5, color: run.color ?? INK },
    opacity: found.length > 1 ? 0.6 : 1, hovertemplate: `seed ${escaped(run.seed)}, step %{x}: %{y:.4~g}<extra></extra>`,
  }));
  return figure(title, traces, layout(230, "step", found[0][1].unit));
}

const escaped = (text) => String(text).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`); // plotly reads HTML

function map({ title, kinds, blocks, values, format, unit }) {
  const drawing = layout(96 + 24 * kinds.length, blocks.length ? "block" : unit.trim(), "");
  const ticks = format.includes("%") ? ".2~%" : ".2~g";
  if (!blocks.length) {
    drawing.xaxis.tickformat = ticks;
    const bar = { type: "bar", orientation: "h", x: values.map(([value]) => value), y: kinds, marker: { color: "#0072B2" } };
    return figure(title, [{ ...bar, hovertemplate: `%{y}: %{x:${format}}${unit}<extra></extra>` }], drawing);
  }
  Object.assign(drawing.xaxis, { type: "category", showgrid: false });
  drawing.yaxis.autorange = "reversed";
  const heat = { type: "heatmap", x: blocks, y: kinds, z: values, colorscale: COLORSCALE, zmin: 0, xgap: 2, ygap: 2 };
  heat.colorbar = { thickness: 10, outlinewidth: 0, tickformat: ticks };
  heat.hovertemplate = `block %{x}, %{y}: %{z:${format}}${unit}<extra></extra>`;
  return figure(title, [heat], drawing);
}

function texts({ side, prompt, before, after }) {
  const written = (text) => {
    const given = element("span", { class: "given" }, prompt);
    return element("pre", { tabindex: 0 }, given, text.startsWith(prompt) ? text.slice(prompt.length) : text || "(nothing)");
  };
  const column = (title, text) => element("div", {}, element("h4", {}, title), written(text));
  return element("article", {}, element("h4", {}, side), element("div", { class: "texts" }, column("Before", before), column("After", after)));
}

function* parts(run) {
  const runs = (run.runs ?? []).map((id) => [id, data.runs[id]]);
  if (run.meaning) yield element("p", { class: "question" }, run.meaning[0].toUpperCase() + run.meaning.slice(1) + ".");
  for (const note of run.notes ?? []) yield element("p", {}, note);
  if (run.of) yield element("p", {}, element("a", { href: `#${run.of}` }, "All seeds of this setting"));
  yield table(["Measured", ""], run.figures);
  if (runs.length) {
    const head = runs[0][1].figures.slice(0, 4).map(([label]) => label);
    const line = ([id, one]) => [element("a", { href: `#${id}` }, one.which), ...head.map((label) => one.figures.find(([l]) => l === label)?.[1] ?? "–")];
    yield element("h3", {}, "Its runs");
    yield table(["Run", ...head], runs.map(line));
  }
  const all = runs.length ? runs.map(([, one]) => one) : [run];
  const titles = [...new Set(all.flatMap((one) => (one.curves ?? []).map(({ title }) => title)))];
  if (titles.length) {
    yield element("h3", {}, "Over training");
    yield element("div", { class: "curves" }, ...titles.map((title) => curve(title, all)));
  }
  if (run.maps) {
    yield element("h3", {}, "By layer");
    yield element("div", { class: "curves" }, ...run.maps.map(map));
  }
  if (run.samples) {
    yield element("h3", {}, "What it writes, before and after");
    yield* run.samples.map(texts);
  }
  if (run.recipe) {
    yield element("h3", {}, "Its settings, as a recipe");
    yield element("pre", { tabindex: 0 }, run.recipe);
    yield copyButton("Copy recipe", () => run.recipe);
  }
}

function glyph({ path, color }) {
  const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [name, value] of [["class", "glyph"], ["viewBox", "0 0 12 12"], ["aria-hidden", "true"]]) box.setAttribute(name, value);
  shape.setAttribute("d", path);
  shape.setAttribute("fill", color ?? "currentColor");
  box.append(shape);
  return box;
}

function show() {
  const run = data.runs[decodeURIComponent(location.hash.slice(1))];
  body.querySelectorAll(".js-plotly-plot").forEach(Plotly.purge);
  body.replaceChildren();
  if (!run) return panel.open && panel.close();
  document.getElementById("run-name").replaceChildren(glyph(run), " ", run.name);
  document.getElementById("run-which").textContent = run.which;
  body.append(...parts(run));
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
  document.getElementById("run-name").focus();
  later.splice(0).forEach((draw) => draw());
}

// The address is the state: closing takes it back without a jump of the page behind.
function closed() {
  if (data.runs[decodeURIComponent(location.hash.slice(1))]) history.pushState(null, "", location.pathname + location.search);
}

for (const plot of drawn()) {
  plot.on("plotly_click", ({ points }) => {
    const id = points.map((point) => point.customdata).find((one) => data.runs[one]);
    if (id) location.hash = id;
  });
}
panel.addEventListener("close", closed);
panel.addEventListener("click", (event) => event.target === panel && panel.close());
document.getElementById("run-close").addEventListener("click", () => panel.close());
addEventListener("hashchange", show);
show();
