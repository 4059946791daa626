// The rest of the page: theme, sortable tables, the choice of a model.

function sortBy(table, column, isDescending) {
  const body = table.tBodies[0];
  const key = (row) => row.cells[column]?.dataset.sort ?? row.cells[column]?.textContent ?? "";
  const rows = [...body.rows];
  const isNumeric = rows.every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
  rows.sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    // Missing values stay at the end, whichever way.
    if (left === "" || right === "") return Number(left === "") - Number(right === "");
    const order = isNumeric ? Number(left) - Number(right) : left.localeCompare(right);
    return isDescending ? -order : order;
  });
  body.append(...rows);
  [...table.tHead.rows[0].cells].forEach((cell, k) => {
    if (k === column) cell.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
}

function sortAgain(table) {
  const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.hasAttribute("aria-sort"));
  if (column >= 0) sortBy(table, column, table.tHead.rows[0].cells[column].getAttribute("aria-sort") === "descending");
}

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => sortBy(table, column, cell.getAttribute("aria-sort") !== "descending"));
    });
  }
}

function startTheme() {
  const button = document.getElementById("theme");
  const show = () => {
    const theme = currentTheme();
    button.setAttribute("aria-pressed", String(theme === "dark"));
    button.querySelector(".says").textContent = theme === "dark" ? "Light" : "Dark";
  };
  button.addEventListener("click", async () => {
    document.documentElement.dataset.theme = currentTheme() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", document.documentElement.dataset.theme);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
    show();
    await redrawAll();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
    show();
    await redrawAll();
  });
  show();
}

function startModels() {
  const select = document.getElementById("model");
  if (select === null) return;
  const show = () => {
    for (const section of document.querySelectorAll(".one-model")) {
      section.hidden = section.dataset.model !== select.value;
      if (!section.hidden) watchCharts(section);
    }
  };
  select.addEventListener("change", () => {
    show();
    drawTheRest();
  });
  show();
}

// What is folded away on the screen belongs on paper, but for what one looks up a line of.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.vega-embed details, .for-looking-up)")) details.open = true;
});

startTheme();
startTables();
watchCharts(document.getElementById("pictures"));
startModels();
startExplorer();
drawTheRest();
window.outlierReport = { state, update, placeLabels, figuresAt, storedCounts };
