"use strict";
const CONFIG = { displayModeBar: false, responsive: true };
const PRINT = { text: "#000", line: "#bbb", card: "#fff", accent: "#1f5f99", width: 690 };

function screenLooks() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { text: read("--text"), line: read("--line"), card: read("--card"), accent: read("--accent") };
}
function dressed(figure, looks) {
  const axis = { gridcolor: looks.line, linecolor: looks.line, tickcolor: looks.line };
  const layout = { ...figure.layout, height: figure.height, font: { color: looks.text, family: "system-ui, sans-serif", size: 13 } };
  layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";  // a finger scrolls the page
  layout.hoverlabel = { bgcolor: looks.card, bordercolor: looks.accent, font: { color: looks.text }, namelength: -1, align: "left" };
  for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) layout[name] = { ...layout[name], ...axis };
  if (looks.width) layout.width = looks.width;
  if (innerWidth < 500 && !looks.width) layout.legend = { ...layout.legend, font: { size: 11 } };
  return layout;
}
function draw(looks) {
  for (const [name, figure] of Object.entries(FIGURES)) {
    const place = document.getElementById(name);
    if (place) Plotly.react(place, figure.data, dressed(figure, looks), CONFIG);
  }
}
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

draw(screenLooks());
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
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(screenLooks()));
addEventListener("beforeprint", () => { for (const more of document.querySelectorAll("details")) more.open = true; draw(PRINT); });
addEventListener("afterprint", () => draw(screenLooks()));
