// Tables are copied as tab-separated text, recipes as they are.

// What a table shows, a cell that spans several repeated in each of them: that is what a spreadsheet can sort.
function cells(table) {
  const grid = [];
  [...table.rows].filter((row) => !row.hidden).forEach((row, y, rows) => {
    let x = 0;
    for (const cell of row.cells) {
      while (grid[y]?.[x] !== undefined) x++;
      const deep = Math.min(cell.rowSpan, rows.length - y);
      for (let down = 0; down < deep; down++)
        for (let right = 0; right < cell.colSpan; right++) (grid[y + down] ??= [])[x + right] = words(cell);
    }
  });
  return grid.map((line) => line.join("\t")).join("\n");
}

function words(cell) {
  const parts = [...cell.childNodes].map((node) => node.textContent.replace(/\s+/g, " ").trim());
  return parts.filter(Boolean).join(" ");
}

// A page opened from a file may have no clipboard to write to; a selection can be copied everywhere.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.cssText = "position: fixed; opacity: 0";
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("not copied");
  }
}

function copyButton(label, text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = label;
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    const focused = document.activeElement;
    button.textContent = await copy(text()).then(() => "Copied", () => "Could not copy");
    focused?.focus();
    setTimeout(() => (button.textContent = label), 1600);
  });
  return button;
}

for (const one of document.querySelectorAll(".table")) {
  const table = one.querySelector("table");
  one.append(copyButton("Copy table", () => cells(table)));
}
