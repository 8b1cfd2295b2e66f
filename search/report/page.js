function show(strategy) {
  const list = document.createElement("dl");
  for (const [name, value] of Object.entries(DETAILS[strategy])) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    list.append(term, text);
  }
  document.getElementById("detail").replaceChildren(list);
}
function chooseRange(button, front) {
  const all = button.dataset.range === "all";
  const { xaxis, yaxis } = FIGURES.front.layout;
  const range = (axis) => (all ? { autorange: true, range: undefined } : { autorange: false, range: axis.range });
  const update = { "xaxis.autorange": all, "yaxis.autorange": all };
  if (!all) Object.assign(update, { "xaxis.range": range(xaxis).range, "yaxis.range": range(yaxis).range });
  Plotly.relayout(front, update);
  for (const other of document.querySelectorAll(".choice button")) other.setAttribute("aria-pressed", String(other === button));
}

const front = document.getElementById("front");
if (front) {
  front.on("plotly_click", (event) => {
    const strategy = event.points[0].customdata;
    if (strategy in DETAILS) show(strategy);
  });
  for (const row of document.querySelectorAll("#front-table tbody tr")) row.addEventListener("click", () => show(row.dataset.strategy));
  for (const button of document.querySelectorAll(".choice button")) button.addEventListener("click", () => chooseRange(button, front));
  if (RECOMMENDED in DETAILS) show(RECOMMENDED);
}
