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

draw(screenLooks());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(screenLooks()));
addEventListener("beforeprint", () => { for (const more of document.querySelectorAll("details")) more.open = true; draw(PRINT); });
addEventListener("afterprint", () => draw(screenLooks()));
